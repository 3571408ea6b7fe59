"""HTML report of a check: one self-contained file without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from deepeyes_plugins.data.check.histogram import Distribution
from deepeyes_plugins.data.check.problem_counts import ProblemKind
from deepeyes_plugins.data.check.scan import FileCheck, merged
from deepeyes_plugins.data.check.statistics import Statistics, by_count

_BARS = 40
_MOST_NAMES = 12
_COUNTS = {
    "sources": "Rows by data source",
    "environments": "Rows by environment",
    "turns": "Rows by number of messages",
    "images": "Rows by number of images",
    "actions": "Assistant turns by action",
    "answers": "Rows by kind of answer",
    "formats": "Images by file format",
    "modes": "Images by pixel mode",
}
_DISTRIBUTIONS = {
    "tokens": "Tokens of a row, images included",
    "characters": "Characters of a row",
    "answer_characters": "Characters of an answer",
    "pixels": "Pixels of an image",
    "widths": "Width of an image, pixels",
    "heights": "Height of an image, pixels",
    "image_bytes": "Bytes of an image file",
}


def render(checks: Sequence[FileCheck]) -> str:
    """Render the report.

    Names and reasons come from the data: all are escaped, and the content security policy allows
    only the inline style.
    """
    folder = files("deepeyes_plugins.data.check.html_report")
    style = (folder / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "index.html.j2").read_text(encoding="utf-8"))
    total = merged(checks)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return template.render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
        style=style,
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        files=[(one, _in_order(one.counts.problem_counts.kinds)) for one in checks],
        total=total,
        verdict=_verdict(checks),
        counts=_counts(total.statistics),
        histograms=_histograms(total.statistics),
    )


def _in_order(kinds: Sequence[ProblemKind]) -> list[ProblemKind]:
    return sorted(kinds, key=lambda kind: (kind.level, -kind.count))


def _verdict(checks: Sequence[FileCheck]) -> dict[str, str]:
    errors, warnings = (
        sum(one.counts.problem_counts.count(level) for one in checks)
        for level in ("error", "warning")
    )
    summary = " and ".join(
        f"{count:,} {name}{'' if count == 1 else 's'}"
        for count, name in ((errors, "error"), (warnings, "warning"))
        if count
    )
    if errors:
        return {"class": "error", "title": f"The data have errors: {summary}"}
    if warnings:
        return {"class": "warning", "title": f"The data can be used: {summary}"}
    return {"class": "fine", "title": "No problems found"}


def _counts(statistics: Statistics) -> list[dict[str, Any]]:
    charts = []
    for name, title in _COUNTS.items():
        counts = by_count(getattr(statistics, name))
        if not counts:
            continue
        most, total = max(counts.values()), sum(counts.values())
        shown = list(counts.items())[:_MOST_NAMES]
        bars = [
            {
                "name": key,
                "count": count,
                "width": max(0.5, round(100 * count / most, 2)),
                "share": f"{100 * count / total:.1f} %",
            }
            for key, count in shown
        ]
        charts.append({"title": title, "bars": bars, "more": len(counts) - len(shown)})
    return charts


def _histograms(statistics: Statistics) -> list[dict[str, Any]]:
    histograms = []
    for name, title in _DISTRIBUTIONS.items():
        distribution: Distribution = getattr(statistics, name)
        bins = distribution.bins(_BARS)
        if not bins:
            continue
        most = max(count for *_, count in bins)
        widths = [high - low for low, high, _ in bins]
        histograms.append(
            {
                "title": title,
                "summary": distribution.summary(),
                "bars": [
                    {
                        "x": at,
                        # Bins that are not empty stay visible.
                        "height": max(1.5, round(100 * count / most, 2)) if count else 0,
                        "title": f"{low:,} to {high - 1:,}: {count:,}",
                    }
                    for at, (low, high, count) in enumerate(bins)
                ],
                "low": bins[0][0],
                "middle": bins[len(bins) // 2][0] if len(bins) > 2 else None,
                "high": bins[-1][1] - 1,
                "grows": len(widths) > 2 and widths[-1] > 2 * widths[len(widths) // 2],
            }
        )
    return histograms
