"""Markdown rendering of a report, and the table cells that all renderings share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from eval_plugins.report.contents import (
    AgentMetrics,
    Benchmark,
    ComparedBenchmark,
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
    environment = Environment(
        autoescape=False,  # Of HTML: every cell goes through `escaped`.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["escaped"] = escaped
    environment.filters["code"] = code
    page = files("eval_plugins.report") / "page" / "report.md.j2"
    return environment.from_string(page.read_text(encoding="utf-8")).render(
        report=report,
        levels=LEVELS,
        named=NAMED,
        scores=[*map(score_cells, report.benchmarks), *map(passes_cells, report.passes)],
        footnotes=footnotes(report),
        agents=[agent_cells(one, one.agent) for one in report.benchmarks if one.agent is not None],
        compared=map(_compared_cells, report.comparison.benchmarks if report.comparison else ()),
    )


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


def _compared_cells(one: ComparedBenchmark) -> tuple[str, ...]:
    return (
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


def code(name: str) -> str:
    """Format a name as code if its characters have no meaning there, else escape it."""
    return f"`{name}`" if re.fullmatch(r"[\w ./:@=+-]+", name) else escaped(name)


def escaped(text: str) -> str:
    """Escape Markdown and HTML, and join lines."""
    for character in "\\`*_[]<>|#&~":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
