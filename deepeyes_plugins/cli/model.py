"""``deepeyes model``: checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins import checkpoints
from deepeyes_plugins.cli.console import Console
from deepeyes_plugins.cli.errors import complain


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Folder of a checkpoint.", show_default=False),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder to write.", show_default=False),
    ],
) -> None:
    """Copy a checkpoint under the published names of tensors.

    transformers, vLLM and SGLang all load them; transformers 5.5 saves Qwen2.5-VL under other
    names. Tensors and configuration are unchanged.
    """
    try:
        exported = checkpoints.export(source, target)
    except checkpoints.CheckpointError as error:
        complain(str(error))
    Console().print(
        f"{target}: {exported.tensors} tensors, {len(exported.renamed)} of them renamed; "
        f"{exported.files} other files",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
