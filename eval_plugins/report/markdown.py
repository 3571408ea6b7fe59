"""Markdown rendering of a report, and the table cells that all renderings share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from eval_plugins.report.contents import (
    AgentMetrics,
    Benchmark,
    Comparison,
    Finding,
    Passes,
    Report,
)
from eval_plugins.report.published import Published
from eval_plugins.report.statistics import Interval

LEVELS = {"distrust": "Do not trust", "caution": "Caution", "note": "Note"}
NAMED = 20
"""Maximum number of gained or lost samples that are listed."""


def number(value: float | None, out_of: float = 100.0) -> str:
    """Format a score with one decimal, or as a whole number if it is a count."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if out_of != 100 else f"{value:.1f}"


def between(interval: Interval | None, out_of: float = 100.0) -> str:
    """Format an interval."""
    if interval is None:
        return "–"
    return f"{number(interval.low, out_of)} – {number(interval.high, out_of)}"


def reference(published: Published | None) -> tuple[str, str]:
    """Format the two published scores; dashes if there are none."""
    if published is None:
        return "–", "–"
    qwen = number(published.qwen2_5_vl, published.out_of)
    if published.qwen2_5_vl_search is not None:
        qwen += f" ({number(published.qwen2_5_vl_search)} with search)"
    return number(published.deepeyes_v2, published.out_of), qwen


def scoring(benchmark: Benchmark) -> str:
    """Describe how a benchmark was scored."""
    used = benchmark.scoring
    if used.scoring == "published":
        words = f"published fallback, judge {used.judge or 'none'}"
        return words + (f", used {used.fallback_used} times" if used.fallback_used else "")
    return f"upstream, judge {used.judge}" if used.judge else "upstream"


def to_markdown(report: Report) -> str:
    """Render a report as Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield ""
    yield f"Model {code(report.model)}, {report.created}, deepeyes-plugins {report.version}."
    yield ""
    yield from _findings(report.findings)
    yield "## Scores"
    yield ""
    yield from _table(
        (
            "benchmark",
            "samples",
            "failed",
            "score",
            "95 %",
            "DeepEyesV2-7B",
            "Qwen2.5-VL-7B",
            "scoring",
        ),
        [*map(score_cells, report.benchmarks), *map(passes_cells, report.passes)],
    )
    yield from map(escaped, footnotes(report))
    yield ""
    rows = [agent_cells(one, one.agent) for one in report.benchmarks if one.agent is not None]
    if rows:
        yield "## The agent"
        yield ""
        yield from _table(
            (
                "benchmark",
                "calls per sample",
                "turns",
                "tokens",
                "seconds, median",
                "seconds, 95th percentile",
                "ends",
                "cost",
            ),
            rows,
        )
    if report.comparison:
        yield from _comparison(report.comparison)


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield "## Reliability"
    yield ""
    for finding in findings:
        where = f"{escaped(finding.benchmark)}: " if finding.benchmark else ""
        text = f"- **{LEVELS[finding.level]}.** {where}{escaped(finding.message)}."
        yield text + (f" {escaped(finding.advice)}" if finding.advice else "")
    yield ""


def score_cells(one: Benchmark) -> tuple[str, ...]:
    """Return a benchmark's row of the score table, as plain text."""
    shown = number(one.shown, one.out_of)
    if one.value is not None and not one.same and one.accuracy is not None:
        interval = f"accuracy {number(one.accuracy)} ({between(one.interval)})"
    else:
        interval = between(one.shown_interval, one.out_of)
    return (
        one.title,
        f"{one.samples:,}",
        f"{one.failed:,}",
        shown,
        interval,
        *reference(one.published),
        scoring(one),
    )


def passes_cells(one: Passes) -> tuple[str, ...]:
    """Return the score table's row of the mean of several passes, as plain text."""
    return (
        f"{one.title}, mean of {len(one.passes)} shuffled passes",
        "",
        "",
        f"{number(one.mean)} ± {number(one.spread)}",
        between(one.interval),
        *reference(one.published),
        f"passes {number(one.low)} – {number(one.high)}",
    )


def footnotes(report: Report) -> Iterator[str]:
    """Yield the footnotes of the score table, as plain text."""
    yield f"Published results: {report.published_source}."
    yield (
        "Intervals: 95 %, bootstrap over samples with a fixed seed; failed samples are excluded."
    )
    if any(one.value is not None and not one.same for one in report.benchmarks):
        yield (
            "Where the interval column shows an accuracy, VLMEvalKit's score is not the mean of "
            "the samples' scores, and the interval is that of the accuracy."
        )
    if rebuilt := [one.title for one in report.benchmarks if one.reconstructed]:
        yield (
            f"VLMEvalKit stores no per-sample verdicts for {', '.join(rebuilt)}: they are "
            "recomputed with its rule by this package."
        )


def agent_cells(one: Benchmark, agent: AgentMetrics) -> tuple[str, ...]:
    """Return a benchmark's row of the agent table, as plain text."""
    calls = ", ".join(f"{tool} {count:.2f}" for tool, count in agent.calls.items())
    ends = ", ".join(
        f"{reason.replace('_', ' ')} {count:,}" for reason, count in agent.end_reasons.items()
    )
    return (
        one.title,
        calls or "none",
        f"{agent.turns:.1f}",
        f"{agent.tokens:,.0f}",
        f"{agent.seconds_p50:.1f}",
        f"{agent.seconds_p95:.1f}",
        ends,
        "–" if agent.cost is None else f"{agent.cost:,.2f}",
    )


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield "## Comparison with the old run"
    yield ""
    folders = ", ".join(map(escaped, comparison.old_folders))
    yield f"Old run: model {code(comparison.old_model)}, {folders}."
    yield ""
    rows = [
        (
            one.title,
            f"{one.paired.samples:,}",
            number(one.old),
            number(one.new),
            f"{100 * one.paired.difference:+.1f}",
            f"{100 * one.paired.interval.low:+.1f} – {100 * one.paired.interval.high:+.1f}",
            f"{one.paired.gained:,} / {one.paired.lost:,}",
            f"{one.p_corrected:.3g}",
            "yes" if one.moved else "no",
        )
        for one in comparison.benchmarks
    ]
    yield from _table(
        (
            "benchmark",
            "samples in both",
            "old",
            "new",
            "difference",
            "95 %",
            "gained / lost",
            "p",
            "significant",
        ),
        rows,
    )
    yield (
        "p: McNemar's exact test (a sign-flip test where samples are variants of one question), "
        "corrected by Holm for the number of benchmarks."
    )
    for one in comparison.benchmarks:
        for word, indexes in (("gained", one.gained), ("lost", one.lost)):
            if indexes:
                more = f" and {len(indexes) - NAMED} more" if len(indexes) > NAMED else ""
                named = ", ".join(map(escaped, indexes[:NAMED]))
                yield f"- {escaped(one.title)}, {word}: {named}{more}"
    for word, names in (("new", comparison.only_new), ("old", comparison.only_old)):
        if names:
            yield f"- only in the {word} run: {escaped(', '.join(names))}"
    yield ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"
    yield ""


def code(name: str) -> str:
    """Format a name as code if its characters have no meaning there, else escape it."""
    return f"`{name}`" if re.fullmatch(r"[\w ./:@=+-]+", name) else escaped(name)


def escaped(text: str) -> str:
    """Escape Markdown and HTML, and join lines."""
    for character in "\\`*_[]<>|#&~":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
