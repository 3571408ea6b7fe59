"""Error messages and exit status of commands."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text


def complain(message: str, status: int = 1) -> NoReturn:
    """Print an error and exit.

    Args:
        message: What is wrong and what to do, as plain text; brackets are not markup.
        status: Exit status.
    """
    text = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True).print(text, soft_wrap=True)
    raise typer.Exit(status)
