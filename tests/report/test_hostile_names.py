"""What a report quotes stays text: names in report.md, and a cell that no reader survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_plugins.report.markdown import code, escaped
from eval_plugins.report.results import Sample, _ocrbench
from eval_plugins.report.tables import UnreadableTable, read_metrics

HOSTILE = "<b onclick=1>`x`</b>| [a](http://b) ![c](d) &lt; ~~e~~\n# f"


def test_markdown_and_html_in_names_are_escaped() -> None:
    assert code("Qwen/Qwen2.5-VL-7B_Instruct") == "`Qwen/Qwen2.5-VL-7B_Instruct`"
    for text in (code(HOSTILE), escaped(HOSTILE)):
        assert "\n" not in text
        for mark in "<>`[]|&~#":
            assert text.count(mark) == text.count(f"\\{mark}") > 0


@pytest.mark.parametrize("reference", ["[" * 100_000, "-" * 100_000 + "1", "(" * 90, "'"])
def test_a_reference_that_cannot_be_parsed_is_a_plain_text(reference: str) -> None:
    sample = Sample("1", "", {}, reference, f"it says {reference}", failed=False)
    assert _ocrbench(sample) == 1.0


@pytest.mark.parametrize("depth", [960, 100_000])
def test_scores_that_are_nested_too_deeply_are_no_scores(depth: int, tmp_path: Path) -> None:
    file = tmp_path / "x_score.json"
    file.write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(UnreadableTable, match="nested too deeply"):
        read_metrics(file)
