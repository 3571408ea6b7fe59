"""Text that is not ours is shown, not obeyed: in a real terminal, in JSON and in logs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.printable import printable, printable_json

MARKER = "\x1b]0;marker\x07\x9b31m\u202edettalp\u2066\b\r\u2028"
"""It would set a title and a colour, reverse the reading order and overwrite the line."""
SHOWN = r"\x1b]0;marker\x07\x9b31m\u202edettalp\u2066\x08\r\u2028"
OBEYED = ("\x1b]", "\x07", "\x9b", "\u202e", "\u2066", "\b", "\u2028")


@given(st.text())
def test_what_is_printable_has_no_controls(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in shown)
    assert printable(shown) == shown and len(shown.splitlines()) <= 1
    several = printable(text, lines=True)
    assert several.count("\n") == text.count("\n")


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_stays_what_it_is(value: object) -> None:
    document = printable_json(json.dumps(value, indent=1, ensure_ascii=False))
    assert json.loads(document) == value
    assert not any(one in document for one in OBEYED)


def test_other_text_is_printed_as_it_is() -> None:
    text = "眼 🦅 naïve \\x1b ﷺ שלום"
    assert printable(text) == text == printable(text, lines=True)


def in_terminal(*arguments: str, folder: Path) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "300"}
    with subprocess.Popen(
        [sys.executable, "-m", "deepeyes_plugins.cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
    ):
        os.close(theirs)
        found = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # The command has ended.
                break
            if not chunk:
                break
            found += chunk
    os.close(ours)
    return found.decode("utf-8", "replace")


def rows(folder: Path) -> list[str]:
    messages = [{"role": f"user{MARKER}", "content": "?"}, {"role": "assistant", "content": "!"}]
    file = folder / f"rows-{MARKER}\n[bold].json".replace("/", "")
    file.write_text(json.dumps([{"messages": messages, f"column{MARKER}": 1}]))
    return ["data", "check", str(file)]


def recording(folder: Path) -> list[str]:
    line = {
        "kind": "text",
        "query": {"text": "panda"},
        "answer": {
            "results": [
                {"title": f"Panda {MARKER}\n2. forged", "link": MARKER, "snippet": f"a\n{MARKER}"}
            ],
            "partial": MARKER,
        },
    }
    (folder / "recording.jsonl").write_text(json.dumps(line) + "\n")
    settings = {"provider": "replay", "providers": {"replay": {"path": "recording.jsonl"}}}
    (folder / "agent.yaml").write_text(yaml.safe_dump({"search": settings}))
    return ["search", "query", "panda", "--config", "agent.yaml"]


def unknown_key(folder: Path) -> list[str]:
    (folder / "agent.yaml").write_text(json.dumps({"search": {f"key{MARKER}": 1}}))
    return ["search", "query", "panda", "--config", "agent.yaml"]


def missing_file(folder: Path) -> list[str]:
    return ["reward", "score", f"missing-{MARKER}"]


COMMANDS = {
    "a table and a file name": rows,
    "results of a search": recording,
    "an error about settings": unknown_key,
    "an error about a file": missing_file,
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_terminal_obeys_no_text(kind: str, tmp_path: Path) -> None:
    arguments = COMMANDS[kind](tmp_path)
    printed = in_terminal(*arguments, folder=tmp_path)
    assert r"\x1b]0;marker" in printed.replace("\r\n", ""), printed
    assert not any(one in printed for one in OBEYED), printed
    assert "\n2. forged" not in printed


def test_json_in_a_terminal_is_as_safe(tmp_path: Path) -> None:
    printed = in_terminal(*recording(tmp_path), "--json", folder=tmp_path)
    assert not any(one in printed for one in OBEYED)
    assert json.loads(printed)["results"][0]["link"] == MARKER


LOGGING = """
import logging, sys
from deepeyes_plugins.serving.process import configure_logging
configure_logging("info", sys.argv[1])
text = sys.argv[2] + "\\nERROR: forged"
logging.getLogger("deepeyes_plugins.search.server").info("query_refused: %s", text)
try:
    raise ValueError(text)
except ValueError:
    logging.getLogger("another.library").exception("it failed")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_text_forges_a_line_of_a_log(log_format: str) -> None:
    command = [sys.executable, "-c", LOGGING, log_format, MARKER]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert not any(one in log for one in OBEYED) and SHOWN in log.replace(r"\\", "\\")
    lines = log.splitlines()
    if log_format == "json":
        assert [json.loads(line)["levelname"] for line in lines] == ["INFO", "ERROR"]
    else:
        started = [line for line in lines if not line.startswith(" ")]
        assert [line.split(":")[0] for line in started] == ["INFO", "ERROR"]
