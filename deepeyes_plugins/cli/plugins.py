"""``deepeyes plugins``: list registered plugins and their packages."""

from __future__ import annotations

import keyword
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from deepeyes_plugins.cli.console import Console, echo, echo_json
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
        echo_json(found)
        return
    table = Table(box=None, header_style="bold")
    for column in ("kind", "name", "provided by"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*map(Text, (row["kind"], row["name"], row["owner"])))
    Console().print(table)


_TEMPLATES = {
    "pyproject.toml.template": "pyproject.toml",
    "README.md.template": "README.md",
    "plugin.py.template": "{package}/__init__.py",
    "test_plugin.py.template": "tests/test_{package}.py",
}


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the package.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the package [default: NAME]"),
    ] = None,
) -> None:
    """Write a package with a tool, an environment, a reward and their tests.

    It works as it is: install it, run its tests, and replace its parts by your own.
    """
    package = name.replace("-", "_").lower()
    if not package.isidentifier() or keyword.iskeyword(package):
        complain(f"{name!r} cannot be a Python package: use letters, digits, - and _", 2)
    folder = output or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        complain(f"{folder} exists and is not an empty folder: choose another with --output")
    values = {"{{ package }}": package, "{{ project }}": package.replace("_", "-")}
    for template, target in _TEMPLATES.items():
        text = (files(__package__) / "new_plugin" / template).read_text(encoding="utf-8")
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        path = folder / target.format(package=package)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    echo(f"Written: {folder}. Next: cd {folder} && pip install -e '.[dev]' && pytest")
