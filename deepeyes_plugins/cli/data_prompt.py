"""``deepeyes data prompt``: system prompts of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.data_prepare import complaints, row_bars
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.output import refuse_inputs, write_text
from deepeyes_plugins.data.system_prompts import SystemPrompt, system_prompts

_SHOWN_CHARACTERS = 160


def prompt(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A data file (parquet for RL, JSON or JSON lines for SFT) or a folder of them.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Write the prompt to this file, byte for byte.",
            show_default=False,
        ),
    ] = None,
    which: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name, or its beginning, of the prompt to write if there are several.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the system prompts of a data set, or write one to a file.

    Serving and evaluation read the file (`system_prompt_file`).
    """
    with complaints():
        with row_bars() as progress:
            found = system_prompts(path, progress)
        if output is not None:
            chosen = _chosen(path, found, which)
            refuse_inputs([output], [path])
            write_text(output, chosen.text or "")
    if as_json:
        facts = [{"name": one.name, "rows": one.rows, "prompt": one.text} for one in found]
        echo_json(facts)
    elif output is not None:
        size = output.stat().st_size
        Console().print(f"{output}: {size:,} bytes", highlight=False, markup=False, soft_wrap=True)
    else:
        for one in found:
            Console().print(_line(one), markup=False, highlight=False, soft_wrap=True)


def _chosen(path: Path, found: list[SystemPrompt], which: str) -> SystemPrompt:
    matching = [one for one in found if one.name.startswith(which)] if which else found
    if len(matching) == 1 and matching[0].text is not None:
        return matching[0]
    if len(matching) == 1:
        raise DataError(f"{path}: these rows have no system prompt")
    listed = "\n".join(f"  {_line(one)}" for one in found)
    reason = f"no prompt named {which}" if which and not matching else "several system prompts"
    raise DataError(f"{path}: {reason}; choose one with --which NAME:\n{listed}")


def _line(one: SystemPrompt) -> str:
    text = "(no system prompt)" if one.text is None else " ".join(one.text.split())
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    size = "" if one.text is None else f"{len(one.text.encode()):,} bytes  "
    return f"{one.name:8}  {one.rows:,} rows  {size}{short}"
