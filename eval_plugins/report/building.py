"""Report builder: read results and trajectories, match them, aggregate, compare two runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev

from deepeyes_plugins import __version__
from deepeyes_plugins.rollout.metrics import MetricsAggregator
from eval_plugins.report.contents import (
    ROUNDING,
    AgentMetrics,
    Benchmark,
    Category,
    ComparedBenchmark,
    Comparison,
    Finding,
    Passes,
    Prices,
    Report,
)
from eval_plugins.report.published import PUBLISHED, SHUFFLED, Published, base_name
from eval_plugins.report.results import DatasetResults, Sample, find_results, models_of
from eval_plugins.report.statistics import compare, holm, mean_interval
from eval_plugins.report.trajectories import LoggedTrajectory, Matched, find_logs, match, read_logs
from eval_plugins.report.trust import check_results, check_trajectories

_OTHER = "other"
SIGNIFICANT = 0.05
_GROUPS = ("real world", "OCR and charts", "mathematics", "search", _OTHER)


class NoResultsError(ValueError):
    """No results were found, or those of several models; the message says what to do."""


@dataclass(slots=True)
class Run:
    """One evaluation run.

    Attributes:
        folders: Folders that were searched.
        model: VLMEvalKit's name of the model.
        results: Results by dataset.
        matched: Trajectories by dataset.
        findings: Problems that affect how far the results can be trusted.
    """

    folders: list[Path]
    model: str
    results: list[DatasetResults]
    matched: dict[str, Matched] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_run(folders: Sequence[Path], model: str | None = None) -> Run:
    """Read results and trajectories.

    Args:
        folders: Work folders of VLMEvalKit and folders of trajectories, searched recursively.
        model: VLMEvalKit's name of the model; required if there are results of several models.

    Raises:
        NoResultsError: A folder is missing, there are no results, or those of several models.
    """
    for folder in folders:
        if not folder.is_dir():
            raise NoResultsError(f"{folder} is not a folder: give the --work-dir of the evaluation")
    results, notes = find_results(folders)
    models = models_of(results)
    if not results:
        raise NoResultsError(
            f"no VLMEvalKit results in {', '.join(map(str, folders))}: give its --work-dir"
        )
    if model is None:
        if len(models) > 1:
            raise NoResultsError(f"results of several models: choose one of {', '.join(models)}")
        model = models[0]
    elif model not in models:
        raise NoResultsError(f"no results of {model!r}; available: {', '.join(models)}")
    results = [result for result in results if result.model == model]
    run = Run(list(folders), model, sorted(results, key=_place))
    logged, bad_lines = read_logs(find_logs(folders))
    run.findings += [Finding(level="note", message=note) for note in notes]
    run.findings += [Finding(level="caution", message=note) for note in bad_lines]
    by_dataset: defaultdict[str, list[LoggedTrajectory]] = defaultdict(list)
    for one in logged:
        by_dataset[one.dataset].append(one)
    for result in run.results:
        # If a dataset was run several times, the log closest to the results in the folder tree is
        # sorted last: the last trajectory of a sample is the one that is used.
        own = sorted(by_dataset.pop(result.name, []), key=partial(_nearness, result.folder))
        run.matched[result.name] = match(result.samples, own)
        run.findings += check_results(result)
        run.findings += check_trajectories(result, run.matched[result.name], own)
    for name, rest in sorted(by_dataset.items()):
        run.findings.append(
            Finding(
                level="caution",
                benchmark=name,
                message=f"{len(rest):,} trajectories of a dataset without results",
                advice="VLMEvalKit may have stopped before it wrote results.",
            )
        )
    return run


def _nearness(folder: Path, one: LoggedTrajectory) -> int:
    """Return the number of path components that the results and a log have in common."""
    pairs = zip(folder.resolve().parts, one.path.parts, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def build(
    run: Run, old: Run | None = None, *, title: str = "Evaluation", prices: Prices | None = None
) -> Report:
    """Build the report of a run, compared with an older run if one is given."""
    prices = prices or Prices()
    benchmarks = [_benchmark(result, run, prices) for result in run.results]
    order = {"distrust": 0, "caution": 1, "note": 2}
    findings = list(run.findings)
    if old is not None:
        findings += [
            finding.model_copy(update={"message": f"in the old run, {finding.message}"})
            for finding in old.findings
            if finding.level == "distrust"
        ]
        findings += _scored_differently(run, old)
    return Report(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        model=run.model,
        folders=[str(folder) for folder in run.folders],
        benchmarks=benchmarks,
        passes=_passes(run, benchmarks),
        findings=sorted(findings, key=lambda finding: order[finding.level]),
        comparison=_comparison(run, old) if old is not None else None,
        prices=prices,
    )


def published_of(name: str) -> Published | None:
    """Return the published results of a dataset; a shuffled pass has those of its benchmark."""
    return PUBLISHED.get(base_name(name))


def title_of(name: str) -> str:
    """Return the display name of a dataset."""
    known = published_of(name)
    shuffled = SHUFFLED.fullmatch(name)
    base = known.title if known else base_name(name)
    return f"{base}, shuffled ({shuffled['seed']})" if shuffled else base


def _place(result: DatasetResults) -> tuple[int, int, str]:
    known = published_of(result.name)
    base = next((at for at, name in enumerate(PUBLISHED) if PUBLISHED[name] is known), 0)
    return _GROUPS.index(known.group if known else _OTHER), base, result.name


def _scored(samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    return [(sample, sample.score) for sample in samples if sample.score is not None]


def _benchmark(result: DatasetResults, run: Run, prices: Prices) -> Benchmark:
    known = published_of(result.name)
    shuffled = SHUFFLED.fullmatch(result.name)
    scored = _scored(result.samples)
    accuracy = interval = None
    if scored:
        scores = [score for _, score in scored]
        accuracy = 100 * fmean(scores)
        clusters = [sample.cluster for sample, _ in scored]
        interval = mean_interval(scores, clusters).scaled(100)
    out_of = known.out_of if known else 1000.0 if result.name == "OCRBench" else 100.0
    value = result.metrics[result.headline] if result.headline is not None else None
    if value is not None and out_of == 100 and _is_share(value, accuracy):
        value *= 100
    same = (
        value is not None
        and accuracy is not None
        and abs(100 * value / out_of - accuracy) < ROUNDING
    )
    by_category: defaultdict[str, list[float]] = defaultdict(list)
    for sample, score in scored:
        by_category[sample.category].append(score)
    return Benchmark(
        name=result.name,
        title=title_of(result.name),
        group=known.group if known else _OTHER,
        model=result.model,
        folder=str(result.folder),
        samples=len(result.samples),
        scored=len(scored),
        failed=sum(sample.failed for sample in result.samples),
        value=value,
        metric=result.headline or "",
        out_of=out_of,
        accuracy=accuracy,
        interval=interval,
        same=same,
        scoring=result.scoring,
        reconstructed=result.reconstructed,
        published=known,
        shuffled_from=shuffled["base"] if shuffled else None,
        agent=_agent(list(run.matched[result.name].by_index.values()), prices),
        categories=[
            Category(name=name or "(none)", samples=len(scores), accuracy=100 * fmean(scores))
            for name, scores in sorted(by_category.items())
        ]
        if len(by_category) > 1
        else [],
    )


def _is_share(value: float, accuracy: float | None) -> bool:
    """Return whether a score is a fraction rather than a percentage.

    Decided by the accuracy of the samples; without one, by whether the score is at most 1.
    """
    if accuracy is None:
        return 0 <= value <= 1
    return abs(100 * value - accuracy) < abs(value - accuracy)


def _agent(own: Sequence[LoggedTrajectory], prices: Prices) -> AgentMetrics | None:
    if not own:
        return None
    records = [one.record.model_copy(update={"data_source": "it"}) for one in own]
    metrics = {
        name.removeprefix("it/"): value for name, value in MetricsAggregator().of(records).items()
    }
    tools = sorted({call.tool for record in records for call in record.tool_calls})
    calls = [call for record in records for call in record.tool_calls]
    read = [one.prompt_tokens for one in own if one.prompt_tokens is not None]
    prompt_tokens = fmean(read) if len(read) == len(own) else None
    generated = sum(record.generated_tokens for record in records)
    return AgentMetrics(
        trajectories=len(own),
        calls={tool: metrics[f"tool_calls/{tool}"] for tool in tools},
        calls_failed={tool: metrics[f"tool_error/{tool}"] for tool in tools},
        samples_with_calls=metrics["samples_with_tool_calls"],
        infrastructure_errors=fmean(call.outcome == "infrastructure_error" for call in calls)
        if calls
        else 0.0,
        turns=metrics["turns/mean"],
        tokens=metrics["generated_tokens/mean"],
        prompt_tokens=prompt_tokens,
        seconds_p50=metrics["trajectory_seconds/p50"],
        seconds_p95=metrics["trajectory_seconds/p95"],
        end_reasons=dict(Counter(str(record.end_reason) for record in records).most_common()),
        cut=sum(one.cut for one in own),
        cost=prices.cost(sum(read) if prompt_tokens is not None else None, generated),
    )


def _passes(run: Run, benchmarks: Sequence[Benchmark]) -> list[Passes]:
    by_base: defaultdict[str, list[Benchmark]] = defaultdict(list)
    for benchmark in benchmarks:
        if benchmark.shuffled_from is not None and benchmark.shown is not None:
            by_base[benchmark.shuffled_from].append(benchmark)
    samples = {result.name: result.samples for result in run.results}
    found = []
    for base, passes in by_base.items():
        values = [value for one in passes if (value := one.shown) is not None]
        # A sample has the same index in every pass, so its passes form one bootstrap cluster.
        scored = [pair for one in passes for pair in _scored(samples[one.name])]
        interval = (
            mean_interval(
                [score for _, score in scored], [sample.cluster for sample, _ in scored]
            ).scaled(100)
            if scored
            else None
        )
        found.append(
            Passes(
                name=base,
                title=title_of(base),
                passes=[one.name for one in passes],
                mean=fmean(values),
                spread=stdev(values) if len(values) > 1 else 0.0,
                low=min(values),
                high=max(values),
                interval=interval,
                published=PUBLISHED.get(base),
            )
        )
    return found


def _scored_differently(run: Run, old: Run) -> list[Finding]:
    """Report benchmarks that were scored by another method or judge in the old run."""
    before = {result.name: _verdicts(result) for result in old.results}
    return [
        Finding(
            level="caution",
            benchmark=result.name,
            message=f"the two runs were scored in different ways: {_verdicts(result)}, and "
            f"{before[result.name]} in the old one",
            advice="The difference is not due to the model alone.",
        )
        for result in run.results
        if _verdicts(result) and before.get(result.name) not in (None, "", _verdicts(result))
    ]


def _verdicts(result: DatasetResults) -> str:
    """Describe where the samples' scores come from; empty without scores."""
    if result.verdicts is None:
        return ""
    table = result.verdicts.stem.removeprefix(f"{result.stem}_")
    return f"{table}, judge {result.scoring.judge}" if result.scoring.judge else table


def _comparison(run: Run, old: Run) -> Comparison:
    before = {result.name: result for result in old.results}
    compared = []
    for result in run.results:
        if result.name not in before:
            continue
        new_scores = {sample.index: (sample, score) for sample, score in _scored(result.samples)}
        old_scores = {sample.index: score for sample, score in _scored(before[result.name].samples)}
        both = [index for index in new_scores if index in old_scores]
        if not both:
            continue
        new = [new_scores[index][1] for index in both]
        earlier = [old_scores[index] for index in both]
        paired = compare(new, earlier, [new_scores[index][0].cluster for index in both])
        pairs = list(zip(both, new, earlier, strict=True))
        compared.append(
            ComparedBenchmark(
                name=result.name,
                title=title_of(result.name),
                paired=paired,
                new=100 * fmean(new),
                old=100 * fmean(earlier),
                p_corrected=paired.p_value,
                moved=False,
                only_new=len(new_scores) - len(both),
                only_old=len(old_scores) - len(both),
                gained=[index for index, now, then in pairs if now >= 0.5 > then],
                lost=[index for index, now, then in pairs if then >= 0.5 > now],
            )
        )
    corrected = holm([one.paired.p_value for one in compared])
    names = {result.name for result in run.results}
    return Comparison(
        old_folders=[str(folder) for folder in old.folders],
        old_model=old.model,
        benchmarks=[
            one.model_copy(update={"p_corrected": value, "moved": value < SIGNIFICANT})
            for one, value in zip(compared, corrected, strict=True)
        ],
        only_new=sorted(names - before.keys()),
        only_old=sorted(before.keys() - names),
    )
