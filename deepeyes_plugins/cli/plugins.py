"""``deepeyes plugins``: list registered plugins and their packages."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.plugins import PluginError
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.search.hooks import image_search_providers, search_providers
from deepeyes_plugins.tools.hooks import tools


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tools, environments, rewards, formatters and search providers with their packages."""
    try:
        found = [
            {"kind": registry.kind, "name": name, "owner": registry.owner(name)}
            for registry in (
                tools(),
                environments(),
                rewards(),
                formatters(),
                search_providers(),
                image_search_providers(),
            )
            for name in sorted(registry)
        ]
    except PluginError as error:
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
