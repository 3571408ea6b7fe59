"""Fill the reference pages when the site is built: a hook of mkdocs (see mkdocs.yml).

A page names what it wants in a comment on a line of its own:

```
<!-- settings: package.module:Model -->        a table for each section of a settings model
<!-- options: package.module:function -->      the options of a command
<!-- provider-options -->                      the options of every search provider
```
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deepeyes_plugins.search.hooks import image_search_providers, search_providers

_MARKER = re.compile(r"^<!-- (settings|options|provider-options)(?:: (\S+))? -->$", re.MULTILINE)
_SPHINX_ROLE = re.compile(r":(?:class|attr|meth|func|mod):(<code>)~?(?:[\w.]+\.)?(\w+)(</code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of a page by what they name."""
    makers: dict[str, Callable[..., str]] = {
        "settings": lambda name: settings(_find(name)),
        "options": lambda name: options(_find(name)),
        "provider-options": lambda _: provider_options(),
    }
    return _MARKER.sub(lambda match: makers[match[1]](match[2]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show the names in docstrings without the roles of Sphinx."""
    return _SPHINX_ROLE.sub(r"\1\2\3", html)


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def settings(model: type[BaseModel]) -> str:
    """Describe a settings model: a table of its own keys, then one for each section in it."""
    top = {key: field for key, field in model.model_fields.items() if not _sections(field)}
    heading = "" if len(top) == len(model.model_fields) else "### Top level\n\n"
    parts = [heading + table(top)]
    for key, field in model.model_fields.items():
        parts += list(_section(key, field))
    return "\n\n".join(parts)


def _section(place: str, field: FieldInfo) -> Iterator[str]:
    for suffix, model in _sections(field):
        fields = {key: inner for key, inner in model.model_fields.items() if not _sections(inner)}
        yield f"### `{place}{suffix}`\n\n{_cell(field.description or '')}\n\n{table(fields)}"
        for key, inner in model.model_fields.items():
            yield from _section(f"{place}{suffix}.{key}", inner)


def _sections(field: FieldInfo) -> list[tuple[str, type[BaseModel]]]:
    """The models in a field's type, each with what follows the field's name in a path."""
    return list(_models(field.annotation, ""))


def _models(annotation: object, suffix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
        return
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        below = suffix
    else:
        below = f"{suffix}.NAME" if origin is dict else f"{suffix}[]"
    for argument in inner:
        yield from _models(argument, below)


def table(fields: dict[str, FieldInfo]) -> str:
    """A table of settings."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        default = "required" if field.is_required() else _code(_default(field))
        kind = f"{type_name(field.annotation)}{_bounds(field)}"
        meaning = _cell(field.description or "")
        rows.append(f"| `{field.alias or key}` | {kind} | {default} | {meaning} |")
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset | set):
        value = sorted(value)
    return "[]" if value == () else str(getattr(value, "value", value))


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else "unset"


def _bounds(field: FieldInfo) -> str:
    """The bounds of a number."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if isinstance(getattr(bound, name, None), int | float)
    ]
    return f", {' and '.join(found)}" if found else ""


def type_name(annotation: Any) -> str:
    """Say in a word what a setting holds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_name(one) for one in inner if one is not NoneType)
    if origin is not None and not isinstance(origin, type):
        return type_name(inner[0])  # Annotated
    if origin is dict or (isinstance(origin, type) and "Mapping" in origin.__name__):
        return "keys and values"
    if origin is not None:
        return "list"
    members = getattr(annotation, "__members__", None)
    if members:
        return " or ".join(f"`{member.value}`" for member in members.values())
    names = {str: "text", bool: "true or false", int: "integer", float: "number"}
    return names.get(annotation, "path" if annotation.__name__ == "Path" else "text")


def options(function: Callable[..., None]) -> str:
    """A table of the options of a command."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    rows = ["| option | default | meaning |", "| --- | --- | --- |"]
    for option in typer.main.get_command(app).params:
        if option.name == "help":
            continue
        default = "" if option.default is None else str(option.default).lower()
        names = ", ".join(f"`{name}`" for name in option.opts)
        meaning = _cell(getattr(option, "help", None) or "")
        rows.append(f"| {names} | {_code(default)} | {meaning} |")
    return "\n".join(rows)


def provider_options() -> str:
    """A table for each search provider that declares its options as a model."""
    kinds = (
        ("providers", search_providers()),
        ("image_providers", image_search_providers()),
    )
    return "\n\n".join(
        f"### `search.{section}.{name}`\n\n{table(model.model_fields)}"
        for section, registry in kinds
        for name in sorted(registry)
        if (model := getattr(registry[name], "options_model", None)) is not None
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
