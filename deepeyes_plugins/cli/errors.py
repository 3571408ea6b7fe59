"""How a command ends that cannot do what it was told: with a sentence, and a status for scripts."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text


def complain(message: str, status: int = 1) -> NoReturn:
    """Print an error and end the command.

    Args:
        message: What is wrong and what to do, as it is to be read: brackets are no markup.
        status: Exit status.
    """
    text = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True).print(text, soft_wrap=True)
    raise typer.Exit(status)
