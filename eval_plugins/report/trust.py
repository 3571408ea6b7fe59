"""Whether a run can be believed: what goes wrong without anybody being told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from deepeyes_plugins.rollout.trajectory import EndReason
from eval_plugins.report.contents import Finding, Level
from eval_plugins.report.results import NO_LETTER, DatasetResults, Sample
from eval_plugins.report.tables import FAILED
from eval_plugins.report.trajectories import Matched, Played

TOLERATED = 0.01
"""Share of the samples above which a fault moves a figure by a point: ours. Below it is a note."""
SPOILT = 0.05
"""Share above which the figure is not the model's any more: ours."""
_OFFICIAL_SIZES = {"OCRBench": 1000}
"""Samples of benchmarks whose figure is a count of them."""

_LIMITS = {
    EndReason.TURNS: "turns",
    EndReason.TOKENS: "tokens",
    EndReason.IMAGES: "images",
    EndReason.WALL_TIME: "time",
}
# What judges leave in a row when they were not reached or not understood, in lower case.
_JUDGE_FAILED = (
    FAILED.lower(),
    "scored_by: failed",
    "retries failed",  # MathVista, MathVerse, MathVision, LogicVista
    "failed to predict",  # multiple choice
    "failed to parse response",  # CharXiv
    "答案解析失败",  # SimpleVQA
)
_NOT_ASKED = ("prefetch succeed", "scored_by: rule")
_JUDGED = {"MathVista", "MathVerse", "MathVision", "CharXiv", "DynaMath", "LogicVista"} | {
    "SimpleVQA",
    "FVQA-test",
    "InfoSeek",
    "MMSearch",
}
"""Beginnings of the names of benchmarks that rules alone cannot score."""


def _level(share: float) -> Level:
    return "distrust" if share > SPOILT else "caution" if share > TOLERATED else "note"


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} ({count / total:.1%})"


def check_results(result: DatasetResults) -> Iterator[Finding]:
    """Look at what VLMEvalKit wrote for one dataset."""

    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=result.name, message=message, advice=advice)

    for problem in result.problems:
        yield finding("distrust" if not result.samples else "caution", problem)
    if result.failed_since:
        yield finding(
            "distrust",
            f"its newest run left nothing to read, so an older one is shown. {result.failed_since}",
            "Mend it and run again with --reuse.",
        )
    status = result.status
    samples = result.samples
    if error := status.get("error_message"):
        yield finding(
            "distrust",
            f"the dataset failed: {error}",
            "VLMEvalKit exits with 0 all the same. Mend it and run again with --reuse.",
        )
    elif reason := status.get("skip_reason"):
        yield finding("distrust", f"VLMEvalKit skipped the scoring: {reason}")
    elif status and status.get("status") != "done":
        yield finding(
            "distrust",
            f"the run was not finished (status {status.get('status', 'unknown')!r})",
            "Run it again with --reuse.",
        )
    elif not samples and not result.problems:
        yield finding("distrust", "there are no predictions")
    if not samples:
        return
    failed = sum(sample.failed for sample in samples)
    if failed:
        yield finding(
            _level(failed / len(samples)),
            f"{_of(failed, len(samples), 'samples')} failed on our side: they are no wrong "
            "answers, and the accuracy here leaves them out",
            "VLMEvalKit's own figure may count them, as wrong or even as right. Run again with "
            "--reuse: it asks only those.",
        )
    official = _OFFICIAL_SIZES.get(result.name)
    if official and len(samples) != official:
        yield finding(
            "distrust",
            f"its figure is a count of {official:,} samples, and here are {len(samples):,}",
        )
    duplicates = len(samples) - len({sample.index for sample in samples})
    if duplicates:
        yield finding("caution", f"{duplicates:,} rows have the index of another row")
    if result.status.get("error_message"):
        return
    if not result.metrics:
        yield finding("distrust", "VLMEvalKit left no figure: it was not scored")
    unscored = sum(sample.score is None and not sample.failed for sample in samples)
    if unscored == len(samples) - failed:
        yield finding(
            "note",
            "no table has the verdicts of single samples, so there is no interval and no comparison"
            if result.metrics
            else "no sample has a verdict",
        )
    elif unscored:
        yield finding(
            _level(unscored / len(samples)),
            f"{_of(unscored, len(samples), 'samples')} have no verdict",
        )
    yield from _check_judge(result, samples)


def _check_judge(result: DatasetResults, samples: Sequence[Sample]) -> Iterator[Finding]:
    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=result.name, message=message, advice=advice)

    notes = [sample.note.lower() for sample in samples if not sample.failed]
    if not notes:
        return
    scoring = result.scoring
    failures = scoring.judge_failures
    if failures is None:
        failures = sum(any(mark in note for mark in _JUDGE_FAILED) for note in notes)
    if failures:
        yield finding(
            _level(failures / len(notes)),
            f"the judge failed for {_of(failures, len(notes), 'answers')}",
            "Where upstream scores, such answers count as wrong; in multiple choice they get an "
            "option drawn at random.",
        )
    unasked = sum(NO_LETTER.lower() in note for note in notes)
    if unasked:
        yield finding(
            _level(unasked / len(notes)),
            f"in {_of(unasked, len(notes), 'answers')} no option was found and no judge was "
            "asked: they count as wrong",
            "Give VLMEvalKit a judge (--judge, --judge-base-url, --judge-key).",
        )
    never = scoring.judge_calls == 0 and scoring.judge is not None
    if scoring.judge_calls is None and any(notes):
        never = all(any(mark in note for mark in _NOT_ASKED) for note in notes)
    needed = any(result.name.startswith(name) for name in _JUDGED)
    if never and needed:
        yield finding(
            "caution",
            "the judge was never called: every answer was decided by rules",
            "That can be right where all answers are in the expected form; look at some.",
        )
    elif needed and scoring.judge_calls is not None and scoring.judge is None:
        yield finding("distrust", "there was no judge, and rules alone cannot score this benchmark")


def check_trajectories(
    result: DatasetResults, matched: Matched, played: Sequence[Played]
) -> Iterator[Finding]:
    """Look at what the agent did, and whether that is what was scored."""

    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=result.name, message=message, advice=advice)

    samples = result.samples
    if not samples:
        return
    if not played:
        yield finding(
            "caution",
            "there are no trajectories of it: what the agent did cannot be checked",
            "Set DEEPEYES_TRAJECTORIES in the run, and give the folder here.",
        )
        return
    missing = sum(sample.index not in matched.by_index for sample in samples)
    if missing:
        yield finding(
            _level(missing / len(samples)),
            f"{_of(missing, len(samples), 'samples')} have no trajectory",
            "Are those of another folder missing?",
        )
    if matched.strangers:
        count = len(matched.strangers)
        yield finding(
            _level(count / len(played)),
            f"{_of(count, len(played), 'trajectories')} belong to no sample of the results",
            "Is the log shared with another run?",
        )
    if matched.different:
        named = ", ".join(matched.different[:5])
        yield finding(
            _level(len(matched.different) / len(samples)),
            f"{_of(len(matched.different), len(samples), 'predictions')} are not the answer of "
            f"their trajectory (samples {named}{'…' if len(matched.different) > 5 else ''})",
            "The log may be that of another run.",
        )
    if matched.repeated:
        yield finding(
            "note",
            f"{matched.repeated:,} earlier trajectories of samples that were played again are left "
            "out",
        )
    own = list(matched.by_index.values())
    if own:
        yield from _check_agent(result.name, own)


def _check_agent(name: str, own: Sequence[Played]) -> Iterator[Finding]:
    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=name, message=message, advice=advice)

    total = len(own)
    calls = [call for one in own for call in one.record.tool_calls]
    broken = Counter(call.tool for call in calls if call.outcome == "infrastructure_error")
    for tool, count in sorted(broken.items()):
        of_tool = sum(call.tool == tool for call in calls)
        yield finding(
            _level(count / of_tool),
            f"{_of(count, of_tool, f'calls of {tool}')} failed on our side: the model had to do "
            "without",
            "Look at the sandbox's or the search service's log.",
        )
    reasons = Counter(one.record.end_reason for one in own)
    for reason, limit in _LIMITS.items():
        if count := reasons[reason]:
            yield finding(
                _level(count / total),
                f"{_of(count, total, 'trajectories')} ended at the limit of {limit} without an "
                "answer",
            )
    cut = sum(one.cut for one in own)
    if cut:
        yield finding(
            _level(cut / total),
            f"in {_of(cut, total, 'trajectories')} a turn was cut at its length limit",
            "Raise max_tokens, or the server's context.",
        )
    silent = reasons[EndReason.NO_ACTION]
    if silent:
        yield finding(
            _level(silent / total),
            f"{_of(silent, total, 'trajectories')} ended without an answer in its tags; the last "
            "words were scored",
            "Is it the system prompt that the checkpoint was trained with?",
        )
    refused = sum(one.record.refused_actions > 0 for one in own)
    if refused:
        # A mistake of the model is part of its score, not a fault of the run.
        yield finding(
            "caution" if refused / total > TOLERATED else "note",
            f"in {_of(refused, total, 'trajectories')} the model called a tool in a wrong form, or "
            "one that it does not have",
        )
    if not calls:
        yield finding(
            "caution",
            f"no tool was called in {total:,} trajectories",
            "Is it the system prompt that the checkpoint was trained with?",
        )
