"""``deepeyes plugins``: what is registered, and by whom."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepeyes_plugins import plugins as registries
from deepeyes_plugins.cli.errors import complain


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tools, environments, rewards, formatters and search providers, and who provides them."""
    try:
        found = [
            {"kind": registry.kind, "name": name, "owner": registry.owner(name)}
            for registry in (
                registries.tools(),
                registries.environments(),
                registries.rewards(),
                registries.formatters(),
                registries.search_providers(),
                registries.image_search_providers(),
            )
            for name in sorted(registry)
        ]
    except registries.PluginError as error:
        complain(str(error))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(box=None, header_style="bold")
    for column in ("kind", "name", "provided by"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*map(Text, (row["kind"], row["name"], row["owner"])))
    Console().print(table)
