"""Safe reader of pickles that contain only text, numbers, lists, tuples and dictionaries.

A pickle is a program, and unpickling it with the standard library can run any code. Here every
instruction is checked against an allow list first; the pickle is then loaded by an unpickler that
refuses classes, functions and external objects.
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
_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class NotPlainError(ValueError):
    """A file is not a pickle, or contains more than plain values."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise NotPlainError(f"the pickle refers to {module}.{name}")

    def persistent_load(self, identifier: Any) -> NoReturn:
        raise NotPlainError("the pickle refers to an external object")


def load_plain(data: bytes) -> Any:
    """Load a pickle of None, bool, int, float, str, list, tuple and dict.

    Raises:
        NotPlainError: The data is not a pickle or contains anything else; none of it was run.
    """
    try:
        for count, (operation, argument, position) in enumerate(pickletools.genops(data)):
            if operation.name not in _PLAIN:
                raise NotPlainError(
                    f"the instruction {operation.name} at byte {position} is not allowed"
                )
            if operation.name in _MEMO_WRITES and int(argument or 0) > count:
                # The unpickler allocates memory for all indices up to the largest one.
                raise NotPlainError(f"memo index {argument} at byte {position} is too large")
        return _Unpickler(io.BytesIO(data)).load()
    except NotPlainError:
        raise
    except Exception as error:  # Broken pickles raise exceptions of any type.
        raise NotPlainError(f"not a readable pickle: {error!r}") from error
