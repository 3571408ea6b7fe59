"""What a session holds, to bytes and back. Runs inside the session: both ways run its own code.

Every variable is a pickle of its own, all made by one pickler: so that what two variables share is
shared again, and one that fails takes only itself along. Functions see the session's own variables
afterwards, not a copy of them; the images of the question are named, not copied.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import platform
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import cloudpickle
import msgpack

logger = logging.getLogger(__name__)

_FORMAT: Final = f"1, Python {platform.python_version()}"
_IPYTHON_NAMES = re.compile(r"_+|_i+|_i?\d+|_[iod]h|__.*__")
_GLOBALS: Final = "globals"
_MAX_REASON_CHARACTERS = 200
_MAX_NAMES = 1000

Namespace = dict[str, Any]


class _TooLarge(Exception):
    pass


class _Bounded:
    """A file in memory, up to a limit; large pieces are kept as they come, not copied."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        if self.size + count > self._limit:
            raise _TooLarge
        self._pieces.append(bytes(data))
        self.size += count
        return count

    def take(self) -> bytes:
        """Returns what was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class _Pickler(cloudpickle.Pickler):
    """Refers to the namespace and to the question's images instead of copying them."""

    def __init__(self, file: _Bounded, namespace: Namespace, originals: dict[int, str]) -> None:
        super().__init__(file, protocol=5)
        # cloudpickle gives the functions of one namespace one new dictionary of globals. This is
        # that dictionary for ours, and `persistent_id` turns it into the namespace itself.
        self._globals: Namespace = {}
        self.globals_ref[id(namespace)] = self._globals
        self._originals = originals

    def persistent_id(self, obj: Any) -> str | None:
        if obj is self._globals:
            return _GLOBALS
        return self._originals.get(id(obj))


class _Unpickler(pickle.Unpickler):
    """Loads one variable after the other."""

    def __init__(self, file: io.BytesIO, known: Namespace) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


class _PatientUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, which another can continue after an error."""

    def __init__(self, pickled: bytes, known: Namespace, memo: dict[int, Any]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._known = known
        self.memo = memo

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


def _load(saved: dict[str, bytes], known: Namespace, lost: dict[str, str]) -> Namespace:
    """Loads all variables, or all but those that fail."""
    unpickler = _Unpickler(io.BytesIO(b"".join(saved.values())), known)
    try:
        return {name: unpickler.load() for name in saved}
    except BaseException as error:
        logger.debug("variables are restored one by one: %s", error)
    loaded: Namespace = {}
    memo: dict[int, Any] = {}
    expected = 0
    for name, pickled in saved.items():
        try:
            loaded[name] = _PatientUnpickler(pickled, known, memo).load()
        except BaseException as error:
            lost[name] = _reason(error)
        # What a failed one would have remembered has its number all the same.
        expected += sum(code.name == "MEMOIZE" for code, _, _ in pickletools.genops(pickled))
        memo.update((number, None) for number in range(len(memo), expected))
    return loaded


class SessionState:
    """Reads and writes the variables and files of the session that this process is."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        """Takes what is there now for the session's beginning.

        Args:
            namespace: The variables of the shell.
            folder: The session's own folder.
        """
        self._namespace = namespace
        self._folder = folder
        self._own = set(namespace)
        self._images: Namespace = {}

    def begin(self, images: dict[str, Any]) -> None:
        """Gives the session its images, by the names that cells see."""
        self._images = images
        self._namespace.update(images)

    def names(self) -> list[str]:
        """Names that the session's code has made."""
        untouched = {
            name for name, image in self._images.items() if self._namespace.get(name) is image
        }
        return [name for name in self._all_names() if name not in untouched]

    def _all_names(self) -> list[str]:
        mine = [
            name
            for name in list(self._namespace)  # Threads may add to it meanwhile.
            if isinstance(name, str)
            and name not in self._own
            and not _IPYTHON_NAMES.fullmatch(name)
        ]
        return mine[:_MAX_NAMES]

    def save(self, max_bytes: int) -> dict[str, Any]:
        """Saves all that can be saved.

        Args:
            max_bytes: Most that variables and files may take together.

        Returns:
            `data` (bytes), `names` (saved variables) and `lost` (name to reason).
        """
        lost: dict[str, str] = {}
        saved, size = self._save_variables(max_bytes, lost)
        files = self._save_files(max_bytes - size, lost)
        threads = threading.active_count() - 1
        if threads:
            lost["(threads)"] = f"{threads} threads were running"
        body = {
            "format": _FORMAT,
            "variables": saved,
            "files": files,
            "settings": pickle.dumps(_settings(), protocol=5),
            "folder": os.path.relpath(os.getcwd(), self._folder),
        }
        data = msgpack.packb(body, unicode_errors="surrogatepass")
        return {"data": data, "names": [printable(name) for name in saved], "lost": told(lost)}

    def _save_variables(self, limit: int, lost: dict[str, str]) -> tuple[dict[str, bytes], int]:
        names = self._all_names()
        while True:
            file = _Bounded(limit)
            pickler = _Pickler(file, self._namespace, self._originals())
            saved: dict[str, bytes] = {}
            for name in names:
                try:
                    pickler.dump(self._namespace[name])
                except KeyboardInterrupt:
                    raise
                except _TooLarge:
                    lost[name] = "too large to be saved"
                except BaseException as error:
                    lost[name] = _reason(error)
                else:
                    saved[name] = file.take()
                    continue
                # What the failed one put into the pickler's memory is in no file: start afresh.
                names = [other for other in names if other not in lost]
                break
            else:
                return saved, file.size

    def _originals(self) -> dict[int, str]:
        """The question's images that are what they were, by identity."""
        return {
            id(image): name
            for name, image in self._images.items()
            # Pillow makes a private copy of shared pixels before it changes them.
            if getattr(image, "readonly", 0) or getattr(image, "tile", None)
        }

    def _save_files(self, room: int, lost: dict[str, str]) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for path in _files(self._folder):
            name = str(path.relative_to(self._folder))
            try:
                size = path.stat().st_size
                if size > room:
                    lost[f"file {name}"] = "too large to be saved"
                    continue
                files[name] = path.read_bytes()
            except OSError as error:
                lost[f"file {name}"] = _reason(error)
            else:
                room -= size
        return files

    def restore(self, data: bytes) -> dict[str, str]:
        """Takes over what `save` saved; returns what did not come back, with the reasons."""
        body = msgpack.unpackb(data, unicode_errors="surrogatepass")
        saved: dict[str, bytes] = body["variables"]
        if body["format"] != _FORMAT:
            reason = f"saved by another version ({body['format']}; this is {_FORMAT})"
            return dict.fromkeys([*saved, *(f"file {name}" for name in body["files"])], reason)
        lost: dict[str, str] = {}
        for name, content in body["files"].items():
            self._attempt(f"file {name}", lost, partial(self._write, name, content))
        for name in set(self._images) - set(saved):
            self._namespace.pop(name, None)
        known = {_GLOBALS: self._namespace, **self._images}
        self._namespace.update(_load(saved, known, lost))
        self._attempt("(settings)", lost, lambda: _apply(pickle.loads(body["settings"])))
        self._attempt("(folder)", lost, lambda: os.chdir(self._folder / body["folder"]))
        return lost

    def _attempt(self, name: str, lost: dict[str, str], action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            lost[name] = _reason(error)

    def _write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _settings() -> dict[str, Any]:
    """What libraries keep for themselves: random states and matplotlib's settings."""
    import matplotlib
    import numpy

    return {
        "random": random.getstate(),
        "numpy": numpy.random.get_state(),
        "matplotlib": dict(matplotlib.rcParams),
        "path": sys.path,
    }


def _apply(settings: dict[str, Any]) -> None:
    import matplotlib
    import numpy

    random.setstate(settings["random"])
    numpy.random.set_state(settings["numpy"])
    dict.update(matplotlib.rcParams, settings["matplotlib"])
    sys.path[:] = settings["path"]


def _reason(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = type(error).__name__
    return printable(text)


def printable(text: str) -> str:
    """The beginning of a name or reason, as valid Unicode."""
    return text[:_MAX_REASON_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")


def told(lost: dict[str, str]) -> dict[str, str]:
    """What is told of lost variables and files: not more than anyone reads."""
    shown = {printable(name): reason for name, reason in list(lost.items())[:_MAX_NAMES]}
    if len(lost) > len(shown):
        shown["(others)"] = f"{len(lost) - len(shown)} more were lost"
    return shown
