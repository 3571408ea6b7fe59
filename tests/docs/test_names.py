"""Commands and files that the documentation names are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from deepeyes_plugins.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
COMMANDS = typer.main.get_command(app)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every ``deepeyes …`` in code, up to the first option or argument."""
    code = re.findall(r"^```\w*\n(.*?)^```|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL)
    for line in "\n".join(block or span for block, span in code).splitlines():
        for words in re.findall(r"(?<![\w./-])deepeyes((?: [a-z][a-z-]*)+)", line.split(" #")[0]):
            yield words.split()


def unknown(words: list[str]) -> str | None:
    """The first word that is no command where one has to be; ``None`` if there is none."""
    here = COMMANDS
    for word in words:
        if not isinstance(here, typer.core.TyperGroup):
            return None  # An argument.
        if word not in here.commands:
            return word
        here = here.commands[word]
    return None


def test_a_command_that_does_not_exist_is_found() -> None:
    written = "```bash\ndeepeyes data chek rows.jsonl  # a typo\n```\n`deepeyes data check x`"
    assert [unknown(words) for words in commands(written)] == ["chek", None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    found = [words for words in commands(page.read_text(encoding="utf-8")) if unknown(words)]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_of_this_repository_that_a_page_names_exist(page: Path) -> None:
    pattern = r"(?<![\w./-])(?:recipes|benchmarks|docs|tests|eval_plugins)/[\w./-]+\.(?:\w+)"
    named = set(re.findall(pattern, page.read_text(encoding="utf-8")))
    assert {name for name in named if not (ROOT / name).exists()} == set()
