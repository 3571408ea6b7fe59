"""HTML rendering of a report: one page with inline plots, style and script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from deepeyes_plugins.rollout.trajectory import EndReason
from eval_plugins.report.contents import AgentMetrics, Benchmark, Passes, Report
from eval_plugins.report.markdown import (
    LEVELS,
    agent_cells,
    footnotes,
    number,
    passes_cells,
    score_cells,
)
from eval_plugins.report.statistics import Interval

_PAGE = files("eval_plugins.report") / "page"
_COLOURS = 6
"""Number of tool colours; further tools share the last one."""
_LEVEL_TITLES = {"distrust": "reason", "caution": "caution", "note": "note"}
_VERDICTS = {
    "distrust": "Do not trust these results",
    "caution": "Check these problems before you use the results",
    "fine": "No problems were found",
}


def render(report: Report, rows: Sequence[Sequence[Any]], samples_per_file: int) -> str:
    """Render the page.

    Its content security policy restricts the browser to the script and style of this package, to
    data files that this script loads, and to images from the page's own folder.

    Args:
        report: The report.
        rows: The cells of each sample in the list.
        samples_per_file: Number of samples in one data file.
    """
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    script = (_PAGE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((_PAGE / "index.html.j2").read_text(encoding="utf-8"))
    by_level = {
        level: [finding for finding in report.findings if finding.level == level]
        for level in LEVELS
    }
    worst = next((level for level in ("distrust", "caution") if by_level[level]), "fine")
    contents = {
        "benchmarks": [one.title for one in report.benchmarks],
        "rows": rows,
        "samples_per_file": samples_per_file,
    }
    return template.render(
        report=report,
        samples=sum(one.samples for one in report.benchmarks),
        policy="; ".join(
            (
                "default-src 'none'",
                f"script-src '{_hash(script)}' 'strict-dynamic'",
                f"style-src '{_hash(style)}'",
                "img-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        style=Markup(style),
        script=Markup(script),
        contents=Markup(_inert_json(contents)),
        verdict={"class": worst, "title": _VERDICTS[worst]},
        levels=[
            (level, by_level[level], title)
            for level, title in _LEVEL_TITLES.items()
            if by_level[level]
        ],
        groups=_groups(report),
        score_table=[
            *map(score_cells, report.benchmarks),
            *map(passes_cells, report.passes),
        ],
        categories=[(one, category) for one in report.benchmarks for category in one.categories],
        footnote=" ".join(footnotes(report)),
        **_agents(report),
        **_differences(report),
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _inert_json(data: Any) -> str:
    """Serialize to JSON without characters that could close or open an HTML element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _groups(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    averages = {one.passes[-1]: one for one in report.passes}
    groups = []
    for group, members in groupby(report.benchmarks, key=lambda one: one.group):
        lines = []
        for one in members:
            lines.append(_track(one.title, one, one.plotted, one.plotted_interval, one.out_of))
            if one.name in averages:
                mean = averages[one.name]
                title = f"{mean.title}, mean of passes"
                lines.append(_track(title, mean, mean.mean, mean.interval, 100.0))
        groups.append((group, lines))
    return groups


def _track(
    title: str,
    one: Benchmark | Passes,
    value: float | None,
    interval: Interval | None,
    out_of: float,
) -> dict[str, Any]:
    def place(score: float | None) -> float | None:
        return None if score is None else round(min(100.0, max(0.0, 100 * score / out_of)), 2)

    known = one.published
    label = f"{title}: {number(value, out_of)}"
    if known is not None:
        label += f"; DeepEyesV2-7B {number(known.deepeyes_v2, out_of)}"
    return {
        "title": title,
        "label": label,
        "shown": number(value, out_of),
        "value": place(value),
        "low": place(interval.low) if interval else None,
        "high": place(interval.high) if interval else None,
        "deepeyes": place(known.deepeyes_v2) if known else None,
        "qwen": place(known.qwen2_5_vl) if known else None,
    }


def _agents(report: Report) -> dict[str, Any]:
    with_agent = [(one, one.agent) for one in report.benchmarks if one.agent is not None]
    tools = sorted({tool for _, agent in with_agent for tool in agent.calls})
    colours = {tool: f"tool-{min(at, _COLOURS - 1)}" for at, tool in enumerate(tools)}
    used = {reason for _, agent in with_agent for reason in agent.end_reasons}
    reasons = [str(reason) for reason in EndReason if reason in used]
    most = max((sum(agent.calls.values()) for _, agent in with_agent), default=0.0) or 1.0
    return {
        "tools": [{"name": tool, "class": colours[tool]} for tool in tools],
        "reasons": [
            {"name": reason.replace("_", " "), "class": f"end-{reason}"} for reason in reasons
        ],
        "agents": [_agent(one.title, agent, colours, reasons, most) for one, agent in with_agent],
        "agent_table": [agent_cells(one, agent) for one, agent in with_agent],
        "cost_note": _cost_note(report),
    }


def _cost_note(report: Report) -> str:
    prices = report.prices
    if prices.input is None and prices.output is None:
        return "No prices were given, so no cost is estimated."
    note = f"Cost: {prices.output or 0:g} per million generated tokens"
    if prices.input is None:
        return note + "; prompt tokens are not counted."
    return note + (
        f" and {prices.input:g} per million prompt tokens, as counted by the server, without a "
        "discount for cached prefixes."
    )


def _agent(
    title: str,
    agent: AgentMetrics,
    colours: Mapping[str, str],
    reasons: Iterable[str],
    most: float,
) -> dict[str, Any]:
    total = sum(agent.calls.values())
    ends = [(reason, agent.end_reasons.get(reason, 0)) for reason in reasons]
    calls_label = ", ".join(f"{tool} {count:.2f}" for tool, count in agent.calls.items())
    return {
        "title": title,
        "calls": _stack(
            (colours[tool], count / most, f"{tool}: {count:.2f} per sample")
            for tool, count in agent.calls.items()
        ),
        "calls_label": calls_label or "no calls",
        "calls_total": f"{total:.2f}",
        "ends": _stack(
            (
                f"end-{reason}",
                count / agent.trajectories,
                f"{reason.replace('_', ' ')}: {count:,}",
            )
            for reason, count in ends
        ),
        "ends_label": ", ".join(f"{reason} {count}" for reason, count in ends),
        "answered": f"{agent.end_reasons.get('answer', 0) / agent.trajectories:.0%}",
    }


def _stack(parts: Iterable[tuple[str, float, str]]) -> list[dict[str, Any]]:
    made = []
    at = 0.0
    for class_, share, title in parts:
        if share > 0:
            made.append(
                {
                    "class": class_,
                    "x": round(100 * at, 2),
                    "width": max(0.2, round(100 * share, 2)),
                    "title": title,
                }
            )
        at += share
    return made


def _differences(report: Report) -> dict[str, Any]:
    positions = {one.name: at for at, one in enumerate(report.benchmarks)}
    if report.comparison is None:
        return {"differences": [], "reach": 0, "positions": positions}
    compared = report.comparison.benchmarks
    bounds = [
        abs(100 * bound)
        for one in compared
        for bound in (one.paired.interval.low, one.paired.interval.high)
    ]
    reach = next((step for step in (2, 5, 10, 20, 30, 50) if step >= max(bounds, default=0)), 100)

    def place(difference: float) -> float:
        return round(50 + 50 * 100 * difference / reach, 2)

    return {
        "reach": reach,
        "positions": positions,
        "differences": [
            {
                "title": one.title,
                "label": f"{one.title}: {100 * one.paired.difference:+.1f} points",
                "shown": f"{100 * one.paired.difference:+.1f}",
                "at": place(one.paired.difference),
                "low": place(one.paired.interval.low),
                "high": place(one.paired.interval.high),
                "moved": one.moved,
            }
            for one in compared
        ],
    }
