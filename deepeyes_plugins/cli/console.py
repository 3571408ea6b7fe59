"""Output of commands: control characters of what is printed are shown, not obeyed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import rich.console
import typer
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from deepeyes_plugins.printable import printable, printable_json


class Console(rich.console.Console):
    """Console whose output has no control characters but those of its own styles and layout."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; a string is one line, in which line feeds are shown."""
        super().print(
            *(printable(one) if isinstance(one, str) else one for one in objects), **options
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=printable(segment.text, lines=True))

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a string, whose width is that of what will be shown."""
        return super().render_str(printable(text, lines=True), **options)


def echo(text: str) -> None:
    """Print a line on standard output."""
    typer.echo(printable(text))


def echo_json(value: Any) -> None:
    """Print a value as JSON, with letters of all scripts as they are."""
    typer.echo(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))
