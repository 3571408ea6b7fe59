"""What entries of LLaMA-Factory's ``dataset_info.json`` say about the rows of their files.

``columns`` and ``tags`` mean what they mean to its converter ``sharegpt`` (0.9.5): only columns
that are named are read, and a tag is the name of a key or role. Without ``columns`` rows are read
in any of the forms that our formatter knows, as are roles and keys without ``tags``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.hooks import formatters

DATASET_INFO = "dataset_info.json"
"""Where LLaMA-Factory looks up data sets."""

READ = ("messages", "images", "system")
"""Columns that are read."""
REFUSED: Mapping[str, str] = {
    "tools": "under this protocol tools are described in the system prompt: write them there",
    "videos": "rows for SFT show images only",
    "audios": "rows for SFT show images only",
    "chosen": "rows for SFT have one answer",
    "rejected": "rows for SFT have one answer",
    "kto_tag": "rows for SFT have one answer, which is right",
}
"""Columns without which a row would teach something else than it says, and why they are none."""
IGNORED = ("prompt", "query", "response", "history")
"""Columns of the converter ``alpaca``, which ``sharegpt`` does not read either."""

ROLE_TAGS: Mapping[str, str] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Tags that name roles, and what our formatter calls these."""
KEY_TAGS = ("role_tag", "content_tag")

_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_TRAIN_SPLIT = re.compile(r"train(\[.*\])?")


@dataclass(frozen=True, slots=True)
class RowForm:
    """Where in a row the conversation is.

    Attributes:
        columns: Of :data:`READ`, the name of each in the rows; ``None`` if they were not named.
        keys: Of a message: those of its role and its content; ``None`` for the usual ones.
        roles: Name in the rows and what our formatter calls it.
    """

    columns: tuple[tuple[str, str], ...] | None = None
    keys: tuple[str, str] | None = None
    roles: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, columns: Any = None, tags: Any = None) -> RowForm:
        """Read ``columns`` and ``tags`` of an entry.

        Raises:
            DataError: They name what cannot be honoured, or no columns and tags.
        """
        named = _table("columns", columns, (*READ, *REFUSED, *IGNORED))
        given = _table("tags", tags, (*KEY_TAGS, *ROLE_TAGS))
        for name, reason in REFUSED.items():
            if name in named:
                raise DataError(f"columns.{name} ({named[name]!r}) cannot be honoured: {reason}")
        roles = tuple((given[tag], role) for tag, role in ROLE_TAGS.items() if tag in given)
        keys = given.get("role_tag", "role"), given.get("content_tag", "content")
        return cls(
            None if columns is None else tuple((n, named[n]) for n in READ if n in named),
            None if keys == ("role", "content") else keys,  # Those that are looked for first.
            tuple((name, role) for name, role in roles if name != role),
        )

    def read(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row in the form of our formatter: ``messages``, ``images``, ``system``."""
        if self.columns is not None:
            row = self._named(row, dict(self.columns))
        if self.keys or self.roles:
            name = "conversations" if row.get("messages") is None else "messages"
            if isinstance(row.get(name), list | tuple):
                row = {**row, name: list(map(self._message, row[name]))}
        return row

    def _named(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
        if "messages" not in columns:
            columns = {**columns, "messages": "messages"}
            if row.get("messages") is None:
                columns["messages"] = "conversations"
        read = {name: row[own] for name, own in columns.items() if own in row}
        hidden = {*READ, "conversations", *columns.values()}
        return {**read, **{key: value for key, value in row.items() if key not in hidden}}

    def _message(self, message: Any) -> Any:
        if not isinstance(message, Mapping):
            return message
        if self.keys is None:
            keys = ("role", "content") if "role" in message else ("from", "value")
        else:
            keys = self.keys
        role = message.get(keys[0])
        if isinstance(role, str):
            role = dict(self.roles).get(role, role)
        return {"role": role, "content": message.get(keys[1])}

    def missing(self, seen: Mapping[str, Any]) -> str | None:
        """Return what the entry says of a column that rows must have and these keys lack."""
        name = dict(self.columns or ()).get("system")
        if name is None or name in seen:
            return None
        return f"there is no column {name!r}, which {DATASET_INFO} names as system"


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set of local files.

    Attributes:
        info: The ``dataset_info.json``.
        name: Of the data set.
        file: Its file or folder, relative to that of ``info``.
        formatting: The converter that is to be applied.
        form: Of the rows.
    """

    info: Path
    name: str
    file: str
    formatting: str
    form: RowForm

    @property
    def path(self) -> Path:
        """Its file or folder."""
        return self.info.parent / self.file

    @classmethod
    def parse(cls, info: Path, name: str, entry: Any) -> Entry | None:
        """Read an entry; ``None`` if its files are not local, or another converter reads them.

        Rows for ``sharegpt`` are taken for rows of ours: its columns and tags mean the same.

        Raises:
            DataError: It says what cannot be honoured.
        """
        where = f"{info}: {name}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where}: is a {type(entry).__name__}, not a table")
        if any(key in entry for key in _ELSEWHERE):
            return None
        file, formatting = entry.get("file_name"), entry.get("formatting", "alpaca")
        if not isinstance(file, str) or not isinstance(formatting, str):
            raise DataError(f"{where}: file_name and formatting have to be texts")
        if formatting != "sharegpt" and formatting not in formatters():
            return None
        if entry.get("ranking"):
            raise DataError(f"{where}: ranking: true is for reward models, not for SFT")
        split = entry.get("split", "train")
        if not isinstance(split, str) or not _TRAIN_SPLIT.fullmatch(split):
            raise DataError(f"{where}: split: {split!r}, but local files have only the split train")
        try:
            form = RowForm.parse(entry.get("columns"), entry.get("tags"))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        return cls(info, name, file, formatting, form)


def entries_at(path: Path, names: Sequence[str] = ()) -> list[Entry]:
    """Return the entries that a path stands for.

    Args:
        path: A ``dataset_info.json`` or a folder with one: all of its entries that we read; or a
            data file: the entry that names it.
        names: Those to choose from; by default all.

    Raises:
        DataError: Entries cannot be read or say what cannot be honoured, or several read the file
            in different ways.
    """
    info = path / DATASET_INFO if path.is_dir() else path.with_name(DATASET_INFO)
    is_file = not path.is_dir() and path.name != DATASET_INFO
    if not info.is_file():
        return []
    found = [
        entry
        for name, value in _load(info).items()
        if (not names or name in names)
        and (not is_file or (isinstance(value, Mapping) and value.get("file_name") == path.name))
        and (entry := Entry.parse(info, name, value)) is not None
    ]
    if not is_file or len({entry.form for entry in found}) < 2:
        return found[:1] if is_file else found
    told = ", ".join(entry.name for entry in found)
    raise DataError(
        f"{path}: {info} has several entries for it with different columns or tags: {told}. Leave "
        "the one that holds, or choose it by --dataset where there is that option"
    )


def form_of(path: Path) -> RowForm:
    """Return the form of the rows of a file, as the ``dataset_info.json`` beside it has it.

    Raises:
        DataError: As for :func:`entries_at`.
    """
    return next((entry.form for entry in entries_at(path)), RowForm())


def _load(info: Path) -> dict[str, Any]:
    try:
        entries = json.loads(info.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{info}: cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise DataError(f"{info}: no table of data sets")
    return entries


def _table(what: str, value: Any, known: tuple[str, ...]) -> dict[str, str]:
    """Return the names in ``columns`` or ``tags``; what is empty is not named.

    Raises:
        DataError: There is another key, or a name that is no text.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is a {type(value).__name__}, not a table")
    for key, name in value.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise DataError(f"{what}.{key} means nothing to LLaMA-Factory{hint}")
        if name is not None and not isinstance(name, str):
            raise DataError(f"{what}.{key} is a {type(name).__name__}, not a text")
    return {key: name for key, name in value.items() if name}
