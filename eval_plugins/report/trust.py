"""Reliability checks of a run: failures that do not show in VLMEvalKit's scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from deepeyes_plugins.rollout.trajectory import EndReason
from eval_plugins.report.contents import Finding, Level
from eval_plugins.report.results import NO_LETTER, DatasetResults, Sample
from eval_plugins.report.tables import FAILED
from eval_plugins.report.trajectories import LoggedTrajectory, Matched

TOLERATED = 0.01
"""Share of affected samples above which a problem is a caution; below, it is a note."""
SPOILT = 0.05
"""Share of affected samples above which a result is not to be trusted."""
_OFFICIAL_SIZES = {"OCRBench": 1000}
"""Number of samples of benchmarks whose score is a count."""

_LIMITS = {
    EndReason.TURNS: "turns",
    EndReason.TOKENS: "tokens",
    EndReason.IMAGES: "images",
    EndReason.WALL_TIME: "time",
}
# Lower-case markers in a row whose judge request failed or could not be parsed.
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
"""Name prefixes of benchmarks that rules alone cannot score."""


def _level(share: float) -> Level:
    return "distrust" if share > SPOILT else "caution" if share > TOLERATED else "note"


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} ({count / total:.1%})"


def check_results(result: DatasetResults) -> Iterator[Finding]:
    """Check VLMEvalKit's results of one dataset."""

    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=result.name, message=message, advice=advice)

    for problem in result.problems:
        yield finding("distrust" if not result.samples else "caution", problem)
    if result.failed_since:
        yield finding(
            "distrust",
            "its newest run left no readable results, so an older one is shown. "
            f"{result.failed_since}",
            "Fix the cause and run again with --reuse.",
        )
    status = result.status
    samples = result.samples
    if error := status.get("error_message"):
        yield finding(
            "distrust",
            f"the dataset failed: {error}",
            "VLMEvalKit exits with 0 nevertheless. Fix the cause and run again with --reuse.",
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
            f"{_of(failed, len(samples), 'samples')} failed with an infrastructure error: they are "
            "not wrong answers, and the accuracy here excludes them",
            "VLMEvalKit's own score may count them as wrong or even as right. Run again with "
            "--reuse to repeat only those.",
        )
    official = _OFFICIAL_SIZES.get(result.name)
    if official and len(samples) != official:
        yield finding(
            "distrust",
            f"its score is a count over {official:,} samples, but the results have "
            f"{len(samples):,}",
        )
    duplicates = len(samples) - len({sample.index for sample in samples})
    if duplicates:
        yield finding("caution", f"{duplicates:,} rows have the index of another row")
    if result.status.get("error_message"):
        return
    if not result.metrics:
        yield finding("distrust", "VLMEvalKit wrote no score: the dataset was not scored")
    unscored = sum(sample.score is None and not sample.failed for sample in samples)
    if unscored == len(samples) - failed:
        yield finding(
            "note",
            "no table has per-sample verdicts, so there is no interval and no comparison"
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
            "With upstream scoring such answers count as wrong; in multiple choice they get a "
            "random option.",
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
            "That is correct only if all answers have the expected form; check some of them.",
        )
    elif needed and scoring.judge_calls is not None and scoring.judge is None:
        yield finding("distrust", "no judge was used, and rules alone cannot score this benchmark")


def check_trajectories(
    result: DatasetResults, matched: Matched, logged: Sequence[LoggedTrajectory]
) -> Iterator[Finding]:
    """Check the trajectories of one dataset, and that they match the scored predictions."""

    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=result.name, message=message, advice=advice)

    samples = result.samples
    if not samples:
        return
    if not logged:
        yield finding(
            "caution",
            "there are no trajectories, so the agent's behaviour cannot be checked",
            "Set DEEPEYES_TRAJECTORIES for the run and pass the folder to this command.",
        )
        return
    missing = sum(sample.index not in matched.by_index for sample in samples)
    if missing:
        yield finding(
            _level(missing / len(samples)),
            f"{_of(missing, len(samples), 'samples')} have no trajectory",
            "Another folder of trajectories may be missing.",
        )
    if matched.unmatched:
        count = len(matched.unmatched)
        yield finding(
            _level(count / len(logged)),
            f"{_of(count, len(logged), 'trajectories')} belong to no sample of the results",
            "The log may be shared with another run.",
        )
    if matched.mismatched:
        named = ", ".join(matched.mismatched[:5])
        yield finding(
            _level(len(matched.mismatched) / len(samples)),
            f"{_of(len(matched.mismatched), len(samples), 'predictions')} differ from the answer "
            f"of their trajectory (samples {named}{'…' if len(matched.mismatched) > 5 else ''})",
            "The log may belong to another run.",
        )
    if matched.repeated:
        yield finding(
            "note",
            f"{matched.repeated:,} earlier trajectories of samples that were repeated are ignored",
        )
    own = list(matched.by_index.values())
    if own:
        yield from _check_agent(result.name, own)


def _check_agent(name: str, own: Sequence[LoggedTrajectory]) -> Iterator[Finding]:
    def finding(level: Level, message: str, advice: str = "") -> Finding:
        return Finding(level=level, benchmark=name, message=message, advice=advice)

    total = len(own)
    calls = [call for one in own for call in one.record.tool_calls]
    broken = Counter(call.tool for call in calls if call.outcome == "infrastructure_error")
    for tool, count in sorted(broken.items()):
        of_tool = sum(call.tool == tool for call in calls)
        yield finding(
            _level(count / of_tool),
            f"{_of(count, of_tool, f'calls of {tool}')} failed with an infrastructure error: the "
            "model got no result",
            "See the log of the sandbox or the search service.",
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
            f"in {_of(cut, total, 'trajectories')} a turn was truncated at its length limit",
            "Raise max_tokens or the server's context length.",
        )
    silent = reasons[EndReason.NO_ACTION]
    if silent:
        yield finding(
            _level(silent / total),
            f"{_of(silent, total, 'trajectories')} ended without answer tags; the text of the last "
            "turn was scored",
            "Check that the system prompt is the one that the checkpoint was trained with.",
        )
    refused = sum(one.record.refused_actions > 0 for one in own)
    if refused:
        # A model error is part of the model's score, so it never makes the run untrustworthy.
        yield finding(
            "caution" if refused / total > TOLERATED else "note",
            f"in {_of(refused, total, 'trajectories')} the model made a malformed tool call or "
            "called an unknown tool",
        )
    if not calls:
        yield finding(
            "caution",
            f"no tool was called in {total:,} trajectories",
            "Check that the system prompt is the one that the checkpoint was trained with.",
        )
