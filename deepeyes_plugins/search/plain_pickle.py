"""Reads pickles of text, numbers, lists and dictionaries, and nothing else.

A pickle is a program: reading one with the standard library runs what its author wrote. Here the
program is looked through first, and only the instructions that make plain values are let pass; what
is let pass is then run by an unpickler that knows no class, function or object outside the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

_PLAIN = frozenset(
    {
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "EMPTY_LIST",
        "LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_DICT",
        "DICT",
        "SETITEM",
        "SETITEMS",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "GET",
        "BINGET",
        "LONG_BINGET",
    }
)
_REMEMBERING = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class NotPlainError(ValueError):
    """A file is no pickle, or one that holds more than plain values."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise NotPlainError(f"it names {module}.{name}")

    def persistent_load(self, identifier: Any) -> NoReturn:
        raise NotPlainError("it refers to something outside")


def load_plain(data: bytes) -> Any:
    """Return what a pickle holds: None, bool, int, float, str, list, tuple and dict of those.

    Raises:
        NotPlainError: It is none, or holds anything else; nothing of it was run.
    """
    try:
        for count, (operation, argument, position) in enumerate(pickletools.genops(data)):
            if operation.name not in _PLAIN:
                raise NotPlainError(
                    f"the instruction {operation.name} at byte {position} makes no plain value"
                )
            if operation.name in _REMEMBERING and int(argument or 0) > count:
                # A place far away makes the unpickler take memory for all places before it.
                raise NotPlainError(f"place {argument} at byte {position} is out of all proportion")
        return _Unpickler(io.BytesIO(data)).load()
    except NotPlainError:
        raise
    except Exception as error:  # Broken programs fail in all manners.
        raise NotPlainError(f"no readable pickle: {error!r}") from error
