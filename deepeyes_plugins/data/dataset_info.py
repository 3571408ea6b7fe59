"""Entries of LLaMA-Factory's ``dataset_info.json``.

``columns`` and ``tags`` have the meaning of its converter ``sharegpt`` (0.9.5): only named columns
are read, and a tag is the name of a key or role. Without ``columns`` or ``tags``, every form that
the built-in formatter knows is accepted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.files import read_json

DATASET_INFO = "dataset_info.json"
"""File with LLaMA-Factory's list of data sets."""

MEDIA_ROOTS_KEY = "media_roots"
"""Key of an entry with the folders and zip files, besides the media folder, that hold images of
its rows. LLaMA-Factory ignores it; ``deepeyes data prepare sft`` writes it."""

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
"""Columns that cannot be ignored without changing the training, and why they are refused."""
IGNORED = ("prompt", "query", "response", "history")
"""Columns of the converter ``alpaca``; ``sharegpt`` ignores them too."""

ROLE_TAGS: Mapping[str, str] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Tags that name roles, and the built-in formatter's names of these roles."""
KEY_TAGS = ("role_tag", "content_tag")

_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_TRAIN_SPLIT = re.compile(r"train(\[.*\])?")


@dataclass(frozen=True, slots=True)
class RowForm:
    """Names of columns, keys and roles in the rows.

    Attributes:
        columns: Column name of each of :data:`READ`; ``None`` if the entry names none.
        keys: Keys of a message's role and content; ``None`` for the usual ones.
        roles: Role names in the rows, each with the built-in formatter's name.
    """

    columns: tuple[tuple[str, str], ...] | None = None
    keys: tuple[str, str] | None = None
    roles: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, columns: Any = None, tags: Any = None) -> RowForm:
        """Read ``columns`` and ``tags`` of an entry.

        Raises:
            DataError: A column is not supported, or the value is invalid.
        """
        named = _table("columns", columns, (*READ, *REFUSED, *IGNORED))
        given = _table("tags", tags, (*KEY_TAGS, *ROLE_TAGS))
        for name, reason in REFUSED.items():
            if name in named:
                raise DataError(f"columns.{name} ({named[name]!r}) is not supported: {reason}")
        roles = tuple((given[tag], role) for tag, role in ROLE_TAGS.items() if tag in given)
        keys = given.get("role_tag", "role"), given.get("content_tag", "content")
        return cls(
            None if columns is None else tuple((n, named[n]) for n in READ if n in named),
            None if keys == ("role", "content") else keys,  # The formatter's first choice.
            tuple((name, role) for name, role in roles if name != role),
        )

    def read(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row in the built-in formatter's form: ``messages``, ``images``, ``system``."""
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
        """Return the problem if the entry names a column that no row has."""
        name = dict(self.columns or ()).get("system")
        if name is None or name in seen:
            return None
        return f"there is no column {name!r}, which {DATASET_INFO} names as system"


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set of local files.

    Attributes:
        info: The ``dataset_info.json``.
        name: Name of the data set.
        file: Its file or folder, relative to the folder of ``info``.
        formatting: The converter.
        form: Form of the rows.
    """

    info: Path
    name: str
    file: str
    formatting: str
    form: RowForm

    @property
    def path(self) -> Path:
        """Path of the file or folder."""
        return self.info.parent / self.file

    @classmethod
    def parse(cls, info: Path, name: str, entry: Any) -> Entry | None:
        """Read an entry; return ``None`` if its files are remote or its converter is unknown.

        ``sharegpt`` is accepted because its columns and tags have the same meaning.

        Raises:
            DataError: The entry is not supported.
        """
        where = f"{info}: {name}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where}: is a {type(entry).__name__}, not an object")
        if any(key in entry for key in _ELSEWHERE):
            return None
        file, formatting = entry.get("file_name"), entry.get("formatting", "alpaca")
        if not isinstance(file, str) or not isinstance(formatting, str):
            raise DataError(f"{where}: file_name and formatting must be strings")
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
    """Return the entries at a path.

    Args:
        path: A ``dataset_info.json`` or its folder, for all supported entries; or a data file,
            for the entry that names it.
        names: Entries to choose from; by default all.

    Raises:
        DataError: An entry cannot be read or is not supported, or several read the file in
            different ways.
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
    listed = ", ".join(entry.name for entry in found)
    raise DataError(
        f"{path}: {info} has several entries for it with different columns or tags: {listed}. "
        "Remove the wrong ones, or choose one with --dataset (deepeyes data check)"
    )


def media_roots(file: Path) -> tuple[Path, ...]:
    """Return the media roots that the ``dataset_info.json`` in a file's folder names for it."""
    try:
        entries = _load(file.with_name(DATASET_INFO)).values()
    except DataError:  # Reported where the entries are read.
        return ()
    named = [
        entry.get(MEDIA_ROOTS_KEY)
        for entry in entries
        if isinstance(entry, Mapping) and entry.get("file_name") == file.name
    ]
    roots = [root for each in named if isinstance(each, list) for root in each]
    return tuple(dict.fromkeys(file.parent / root for root in roots if isinstance(root, str)))


def form_of(path: Path) -> RowForm:
    """Return the form of a file's rows according to the ``dataset_info.json`` in its folder.

    Raises:
        DataError: As for :func:`entries_at`.
    """
    return next((entry.form for entry in entries_at(path)), RowForm())


def _load(info: Path) -> dict[str, Any]:
    try:
        entries = read_json(info.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{info}: cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise DataError(f"{info}: not a JSON object of data sets")
    return entries


def _table(what: str, value: Any, known: tuple[str, ...]) -> dict[str, str]:
    """Return the names in ``columns`` or ``tags`` without empty ones.

    Raises:
        DataError: A key is unknown, or a name is not a string.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{what} is a {type(value).__name__}, not an object")
    for key, name in value.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]}" if near else ""
            raise DataError(f"{what}.{key} is unknown to LLaMA-Factory{hint}")
        if name is not None and not isinstance(name, str):
            raise DataError(f"{what}.{key} is a {type(name).__name__}, not a string")
    return {key: name for key, name in value.items() if name}
