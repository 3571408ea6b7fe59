"""Repair of RL rows to one schema for all files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.data.media import is_inline, short_name
from deepeyes_plugins.data.message_parts import image_source
from deepeyes_plugins.data.prepare.changes import Change, Outcome
from deepeyes_plugins.data.rl_rows import STALE_ENVIRONMENTS, plain_row
from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.missing import is_missing

_TEXT = pa.string()
_FIXED: Mapping[str, pa.DataType] = {
    "prompt": pa.list_(pa.struct({"role": _TEXT, "content": _TEXT})),
    "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": _TEXT})),
    "data_source": _TEXT,
    "env_name": _TEXT,
}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "reward_model": ("ground_truth", "style"),
    "extra_info": ("answer", "index", "question", "split"),
}
"""Fields of nested columns that a file lacks or stores as JSON text."""

ReadImage = Callable[[str], bytes]


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return a schema for the repaired rows of all files.

    A column or field with different types in different files becomes a string.
    """
    types: dict[str, list[pa.DataType]] = {
        name: [] for name in ("data_source", "env_name", "prompt", "images", *_FIELDS)
    }
    for schema in schemas:
        for column in schema:
            types.setdefault(column.name, []).append(column.type)
    fields = {}
    for name, found in types.items():
        if name in _FIXED:
            fields[name] = _FIXED[name]
        elif name in _FIELDS:
            structs = [one for one in map(_plain_type, found) if pa.types.is_struct(one)]
            if len(structs) < len(found) or not found:
                structs.append(pa.struct({field: _TEXT for field in _FIELDS[name]}))
            fields[name] = _common(structs)
        else:
            fields[name] = _common(found)
    truth = {field.name: field.type for field in fields["reward_model"]}
    fields["reward_model"] = pa.struct({**truth, "ground_truth": _TEXT, "style": _TEXT})
    return pa.schema(fields)


def _common(types: Iterable[pa.DataType]) -> pa.DataType:
    left = [one for one in dict.fromkeys(map(_plain_type, types)) if not pa.types.is_null(one)]
    if len(left) == 1:
        return left[0]
    if left and all(map(pa.types.is_struct, left)):
        fields: dict[str, list[pa.DataType]] = {}
        for struct in left:
            for field in struct:
                fields.setdefault(field.name, []).append(field.type)
        return pa.struct({name: _common(found) for name, found in fields.items()})
    if left and all(map(pa.types.is_list, left)):
        return pa.list_(_common([one.value_type for one in left]))
    return _TEXT


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _TEXT
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        if not kind.num_fields:  # Parquet cannot hold one.
            return pa.null()
        return pa.struct({field.name: _plain_type(field.type) for field in kind})
    return kind


def repair_rl_row(
    row: Mapping[str, Any],
    *,
    schema: pa.Schema,
    environment: str,
    source: str = "",
    read_image: ReadImage,
) -> Outcome:
    """Repair a row where the result is unambiguous.

    Args:
        row: The row.
        schema: Schema of the result; see :func:`common_schema`.
        environment: ``env_name`` of rows in a file without that column.
        source: ``data_source`` of rows without one.
        read_image: Reads an image file by its path.

    Returns:
        The row with exactly the columns of ``schema``. Faults are unreadable images and ground
        truths of several values; other problems are left to the check.
    """
    outcome = Outcome(None)
    note = outcome.changes.append
    messages, images = _prompt(row, outcome)
    fixed = {
        "prompt": messages,
        "images": _images(images, read_image, outcome),
        "data_source": _present(row.get("data_source")) or source or None,
        "env_name": _present(row.get("env_name")) if "env_name" in row else environment,
        "extra_info": _parsed(_present(row.get("extra_info")), "extra_info", note),
    }
    fixed["reward_model"] = _reward_model(row.get("reward_model"), fixed["extra_info"], outcome)
    if fixed["data_source"] != row.get("data_source"):
        note(Change("data_source", row.get("data_source"), source, "rows without one"))
    if "env_name" not in row:
        note(Change("env_name", None, environment, "the environment of files without env_name"))
    elif current := STALE_ENVIRONMENTS.get(str(row["env_name"])):
        fixed["env_name"] = current
        note(Change("env_name", row["env_name"], current, "an old name of the environment"))
    outcome.row = {}
    for column in schema:
        before = fixed[column.name] if column.name in fixed else row.get(column.name)
        after = _fit(before, column.type)
        if column.name != "images" and not _same(before, after):
            note(Change(column.name, before, after, "one type for all files"))
        outcome.row[column.name] = after
    return outcome


def _prompt(row: Mapping[str, Any], outcome: Outcome) -> tuple[Any, Any]:
    """Return the prompt, and all images of the row including those within the prompt."""
    note = outcome.changes.append
    messages, images = _parsed(row.get("prompt"), "prompt", note), row.get("images")
    if not isinstance(messages, list):
        return messages, images
    try:
        plain = plain_row({"prompt": messages, "images": images})
    except RowError as error:
        outcome.faults.append(Finding(str(error), "prompt"))
        return messages, images
    repaired = []
    for before, message in zip(messages, plain["prompt"], strict=True):
        if isinstance(message, Mapping):
            message = {"role": message.get("role"), "content": message.get("content")}
            if message != before:
                note(Change("prompt", before, message, "a message is a role and a text"))
        repaired.append(message)
    return repaired, plain["images"]


def _images(value: Any, read_image: ReadImage, outcome: Outcome) -> list[Any]:
    note = outcome.changes.append
    if is_missing(value):
        note(Change("images", None, [], "no images are an empty list"))
        return []
    if not isinstance(value, list):
        note(Change("images", value, [value], "one image is a list of one"))
        value = [value]
    images = []
    for number, image in enumerate(value, 1):
        source = image_source(image)
        path = image.get("path") if isinstance(image, Mapping) else None
        entry = {"bytes": source if isinstance(source, bytes) else None, "path": path}
        if isinstance(source, str):
            entry["path"] = None if is_inline(source) else source
            try:
                entry["bytes"] = read_image(source)
            except RowError as error:
                reason = f"image {number} ({short_name(source)}): {error}"
                outcome.faults.append(Finding(reason, "images"))
            else:
                note(Change("images", image, entry, "an image file is held in its row"))
        elif entry != image:
            note(Change("images", image, entry, "an image is bytes and a path"))
        images.append(entry)
    return images


def _reward_model(value: Any, extra_info: Any, outcome: Outcome) -> dict[str, Any]:
    note = outcome.changes.append
    parsed = _parsed(value, "reward_model", note)
    model = dict(parsed) if isinstance(parsed, Mapping) else {"ground_truth": parsed}
    truth = _present(model.get("ground_truth"))
    known = _present(extra_info.get("answer")) if isinstance(extra_info, Mapping) else None
    if truth is None and known is not None:
        truth = known
        note(Change("reward_model", model.get("ground_truth"), truth, "the answer of extra_info"))
    if isinstance(truth, list | Mapping):
        # Converted to text it would be a wrong reference answer.
        kind = type(truth).__name__
        outcome.faults.append(
            Finding(f"the ground truth is a {kind}, not a string", "reward_model")
        )
    if isinstance(truth, int | float):
        # The same conversion as in training.
        note(Change("reward_model", truth, str(truth), "a ground truth is text"))
        truth = str(truth)
    model["ground_truth"] = truth
    if is_missing(model.get("style")):
        note(Change("reward_model", model.get("style"), "rule", "the style of a reward"))
        model["style"] = "rule"
    return model


def _present(value: Any) -> Any:
    return None if is_missing(value) else value


def _parsed(value: Any, key: str, note: Callable[[Change], None]) -> Any:
    """Parse a nested column that is stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        parsed = read_json(value)
    except ValueError:
        return value
    if not isinstance(parsed, dict | list):
        return value
    note(Change(key, value, "the same as a nested column", "a nested column written as text"))
    return parsed


def _fit(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if pa.types.is_struct(kind):
        if not isinstance(value, Mapping):
            return None
        return {field.name: _fit(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            return None
        return [_fit(entry, kind.value_type) for entry in value]
    return value


def _same(before: Any, after: Any) -> bool:
    """Return whether two values are equal; missing keys equal null."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return all(_same(before.get(key), after.get(key)) for key in {*before, *after})
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after) or (before in ({}, None) and after is None)
