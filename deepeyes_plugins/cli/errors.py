"""Error messages and exit status of commands."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.text import Text

from deepeyes_plugins.cli.console import Console
from deepeyes_plugins.printable import printable


def complain(message: str, status: int = 1) -> NoReturn:
    """Print an error and exit.

    Args:
        message: What is wrong and what to do, as plain text; brackets are not markup.
        status: Exit status.
    """
    text = Text.assemble(("error:", "red"), " ", printable(message, lines=True))
    Console(stderr=True).print(text, soft_wrap=True)
    raise typer.Exit(status)
