"""``deepeyes search image-cache``: inspect caches of the image provider ``cache``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.search.image_cache import ImageCache, ImageCacheError


def info(
    cache: Annotated[
        Path, typer.Argument(metavar="PATH", help="File of the cache.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show the contents of a cache."""
    try:
        counts = ImageCache(cache).counts()
    except ImageCacheError as error:
        complain(str(error))
    facts = {"path": str(cache), "bytes": cache.stat().st_size, **counts}
    if as_json:
        echo_json(facts)
        return
    console = Console()
    for name, value in facts.items():
        console.print(f"{name.replace('_', ' '):16} {value}", highlight=False, markup=False)
