"""The system prompt of a data set comes out byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.system_prompts import system_prompts
from deepeyes_plugins.settings import AgentSettings
from eval_plugins.vlmevalkit.settings import PromptSettings

ODD = "  # Rôle\r\nUse <code>.\n\n```python\n\tx\n```\u2028 \n"


def data_file(path: Path, prompts: list[str | None]) -> Path:
    rows = []
    for text in prompts:
        system = [] if text is None else [{"role": "system", "content": text}]
        rows.append([*system, {"role": "user", "content": "2 + 2?"}])
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"prompt": rows, "images": [[b"x"]] * len(rows)}), path)
    else:
        path.write_text(json.dumps([{"messages": row} for row in rows]))
    return path


def prompt(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", "prompt"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["x.parquet", "x.json"])
def test_it_is_written_and_read_back_as_the_rows_have_it(name: str, tmp_path: Path) -> None:
    source, target = data_file(tmp_path / name, [ODD] * 20), tmp_path / "prompt.txt"

    assert prompt(source, "-o", target).returncode == 0

    assert target.read_bytes() == ODD.encode()
    assert PromptSettings(system_prompt_file=target).resolve(AgentSettings()) == ODD


def test_of_several_one_has_to_be_chosen(tmp_path: Path) -> None:
    source, target = data_file(tmp_path / "x.parquet", ["a", "b", "b", None]), tmp_path / "out"
    b, a, none = (one for one in system_prompts(source))
    assert [(one.text, one.rows) for one in (b, a, none)] == [("b", 2), ("a", 1), (None, 1)]

    refused = prompt(source, "-o", target)

    assert (refused.returncode, target.exists()) == (1, False)
    assert "choose one with --which" in refused.stderr and f"{b.name}  2 rows" in refused.stderr
    listed = json.loads(prompt(source, "-o", target, "--which", a.name, "--json").stdout)
    assert target.read_text() == "a"
    assert [one["name"] for one in listed] == [b.name, a.name, "none"]


def test_rows_of_sharegpt_and_a_column_for_it(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"system": "a", "conversations": []}\n'
        '{"conversations": [{"from": "system", "value": "a"}]}\n'
        '{"messages": "none"}\n'
    )
    assert [one.text for one in system_prompts(tmp_path / "x.jsonl")] == ["a", None]


def test_prompts_that_stand_as_json_and_in_parts(tmp_path: Path) -> None:
    parts = [{"role": "system", "content": [{"type": "text", "text": "a"}]}]
    (tmp_path / "x.json").write_text(json.dumps([{"messages": parts}]))
    texts = [json.dumps([{"role": "system", "content": "a"}]), json.dumps(parts)]
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "x.parquet")
    for name in ("x.json", "x.parquet"):
        assert [one.text for one in system_prompts(tmp_path / name)] == ["a"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.json", b'[{"messages": [', "row 1: not valid JSON"),
        ("x.json", b"[]", "no rows"),
        ("x.json", b'["\xff"]', "is not UTF-8"),
        (
            "x.json",
            b'[{"system": "\\ud800"}]',
            "the system prompt contains a lone surrogate",
        ),
        (
            "x.json",
            b'[{"messages": [{"role": "system", "content": {"text": "a"}}]}]',
            "row 1: the system prompt is a dict, not a string",
        ),
        ("x.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=reason):
        system_prompts(tmp_path / name)


def test_a_folder_is_read_as_a_whole(tmp_path: Path) -> None:
    data_file(tmp_path / "a.parquet", ["one", "two"])
    data_file(tmp_path / "b.json", ["two", None])
    found = [(one.text, one.rows) for one in system_prompts(tmp_path)]
    assert found[0] == ("two", 2)
    assert set(found) == {("two", 2), ("one", 1), (None, 1)}


def test_what_is_not_there_is_not_called_cut_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        system_prompts(tmp_path / "gone.parquet")
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="'prompt' is missing; the file's columns: question"):
        system_prompts(tmp_path / "other.parquet")
