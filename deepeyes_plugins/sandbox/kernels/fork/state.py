"""Snapshots of a session's state. Runs in the session, since pickles execute its code.

Each variable is a pickle of its own, so that failures are independent, and all are made by one
pickler, so that shared objects are shared again. Restored functions use the session's namespace,
not a copy of it. The images of the task are saved as references.
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import pickle
import pickletools
import platform
import random
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import cloudpickle
import msgpack

logger = logging.getLogger(__name__)

_FORMAT: Final = f"2, Python {platform.python_version()}"
_IPYTHON_NAMES = re.compile(r"_+|_i+|_i?\d+|_[iod]h|__.*__")
_GLOBALS: Final = "globals"
_LENGTH: Final = struct.Struct("!Q")
_MAX_REASON_CHARACTERS = 200
_MAX_NAMES = 1000

Namespace = dict[str, Any]


class _TooLarge(Exception):
    pass


class _MemoryWriter:
    """File object that writes to the server's memory file, up to a limit.

    It writes to memory maps, to which the limit on the size of files does not apply.
    """

    def __init__(self, memory: int, limit: int) -> None:
        self._memory = memory
        self._limit = limit
        self.size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.size + view.nbytes > self._limit:
            raise _TooLarge
        if view.nbytes:
            before = self.size % mmap.ALLOCATIONGRANULARITY
            length = before + view.nbytes
            with mmap.mmap(self._memory, length, offset=self.size - before) as window:
                window[before:] = view
        self.size += view.nbytes
        return view.nbytes


class _Pickler(cloudpickle.Pickler):
    """Pickler that saves the namespace and the task's images as references."""

    def __init__(
        self, file: _MemoryWriter, namespace: Namespace, originals: dict[int, str]
    ) -> None:
        super().__init__(file, protocol=5)
        # cloudpickle saves one dictionary of globals for all functions of a namespace. This is that
        # dictionary, which `persistent_id` replaces by a reference to the namespace.
        self._globals: Namespace = {}
        self.globals_ref[id(namespace)] = self._globals
        self._originals = originals

    def persistent_id(self, obj: Any) -> str | None:
        if obj is self._globals:
            return _GLOBALS
        return self._originals.get(id(obj))


class _Unpickler(pickle.Unpickler):
    """Unpickler that resolves references to the namespace and images."""

    def __init__(self, file: BinaryIO, known: Namespace) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


class _ResumableUnpickler(pickle._Unpickler):
    """Pure-Python unpickler, whose memo another one can continue to use after an error."""

    def __init__(self, pickled: bytes, known: Namespace, memo: dict[int, Any]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._known = known
        self.memo = memo

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


def _load(
    source: BinaryIO, saved: dict[str, int], known: Namespace, lost: dict[str, str]
) -> Namespace:
    """Load all variables except for those that fail."""
    unpickler = _Unpickler(source, known)
    try:
        return {name: unpickler.load() for name in saved}
    except BaseException as error:
        logger.debug("variables are restored one by one: %s", error)
    loaded: Namespace = {}
    memo: dict[int, Any] = {}
    expected = 0
    source.seek(0)
    for name, size in saved.items():
        pickled = source.read(size)
        try:
            loaded[name] = _ResumableUnpickler(pickled, known, memo).load()
        except BaseException as error:
            lost[name] = _reason(error)
        # The memo of later variables counts the entries of a failed one, too.
        expected += sum(code.name == "MEMOIZE" for code, _, _ in pickletools.genops(pickled))
        memo.update((number, None) for number in range(len(memo), expected))
    return loaded


class SessionState:
    """Variables and files of the session in this process."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        """Initialize the state; existing variables are not part of it.

        Args:
            namespace: The variables of the shell.
            folder: The session's scratch folder.
        """
        self._namespace = namespace
        self._folder = folder
        self._initial_names = set(namespace)
        self._images: Namespace = {}

    def begin(self, images: dict[str, Any]) -> None:
        """Define the session's images by variable name."""
        self._images = images
        self._namespace.update(images)

    def names(self) -> list[str]:
        """Return the names of variables that the session's code has defined."""
        untouched = {
            name for name, image in self._images.items() if self._namespace.get(name) is image
        }
        return [name for name in self._all_names() if name not in untouched]

    def _all_names(self) -> list[str]:
        names = [
            name
            for name in list(self._namespace)  # Threads may change it concurrently.
            if isinstance(name, str)
            and name not in self._initial_names
            and not _IPYTHON_NAMES.fullmatch(name)
        ]
        return names[:_MAX_NAMES]

    def save(self, memory: int, max_bytes: int) -> dict[str, Any]:
        """Save variables and files as far as possible, followed by a manifest.

        Args:
            memory: File descriptor of the memory to write to, somewhat larger than ``max_bytes``.
            max_bytes: Maximum total size of variables and files.

        Returns:
            ``size`` (bytes written), ``names`` (saved variables) and ``lost`` (name to reason).
        """
        lost: dict[str, str] = {}
        target, variables = self._save_variables(memory, max_bytes, lost)
        files = self._save_files(target, lost)
        threads = threading.active_count() - 1
        if threads:
            lost["(threads)"] = f"{threads} threads were running"
        manifest = {
            "format": _FORMAT,
            "variables": variables,
            "files": files,
            "folders": [str(path.relative_to(self._folder)) for path in _folders(self._folder)],
            "settings": pickle.dumps(_settings(), protocol=5),
            "folder": os.path.relpath(os.getcwd(), self._folder),
        }
        packed = msgpack.packb(manifest, unicode_errors="surrogatepass")
        ending = _MemoryWriter(memory, sys.maxsize)
        ending.size = target.size
        ending.write(packed + _LENGTH.pack(len(packed)))
        names = [printable(name) for name in variables]
        return {"size": ending.size, "names": names, "lost": reported(lost)}

    def _save_variables(
        self, memory: int, limit: int, lost: dict[str, str]
    ) -> tuple[_MemoryWriter, dict[str, int]]:
        """Save the variables; return the written memory and the size of each variable."""
        names = self._all_names()
        while True:
            target = _MemoryWriter(memory, limit)
            pickler = _Pickler(target, self._namespace, self._originals())
            saved: dict[str, int] = {}
            for name in names:
                before = target.size
                try:
                    pickler.dump(self._namespace[name])
                except KeyboardInterrupt:
                    raise
                except _TooLarge:
                    lost[name] = "too large to be saved"
                except BaseException as error:
                    lost[name] = _reason(error)
                else:
                    saved[name] = target.size - before
                    continue
                # The pickler's memo now refers to objects that were not written: start over.
                names = [other for other in names if other not in lost]
                break
            else:
                return target, saved

    def _originals(self) -> dict[int, str]:
        """Return the unchanged images of the task: object ID to variable name."""
        return {
            id(image): name
            for name, image in self._images.items()
            # Pillow makes a private copy of shared pixels before it changes them.
            if getattr(image, "readonly", 0) or getattr(image, "tile", None)
        }

    def _save_files(self, target: _MemoryWriter, lost: dict[str, str]) -> dict[str, int]:
        files: dict[str, int] = {}
        for path in _files(self._folder):
            name = str(path.relative_to(self._folder))
            try:
                files[name] = target.write(path.read_bytes())
            except _TooLarge:
                lost[f"file {name}"] = "too large to be saved"
            except OSError as error:
                lost[f"file {name}"] = _reason(error)
        return files

    def restore(self, memory: int) -> dict[str, str]:
        """Restore a snapshot; return what could not be restored, with the reasons.

        Args:
            memory: File descriptor of the memory with the snapshot.
        """
        with open(memory, "rb", closefd=False) as source:
            manifest = _read_manifest(source)
            saved: dict[str, int] = manifest["variables"]
            files: dict[str, int] = manifest["files"]
            if manifest["format"] != _FORMAT:
                reason = f"saved by another version ({manifest['format']}; this is {_FORMAT})"
                return dict.fromkeys([*saved, *(f"file {name}" for name in files)], reason)
            lost: dict[str, str] = {}
            source.seek(sum(saved.values()))
            for name in manifest.get("folders", ()):  # Absent from snapshots of earlier versions.
                make = partial(os.makedirs, self._folder / name, exist_ok=True)
                self._attempt(f"folder {name}", lost, make)
            for name, size in files.items():
                content = source.read(size)
                self._attempt(f"file {name}", lost, partial(self._write, name, content))
            for name in set(self._images) - set(saved):
                self._namespace.pop(name, None)
            known = {_GLOBALS: self._namespace, **self._images}
            source.seek(0)
            self._namespace.update(_load(source, saved, known, lost))
        self._attempt("(settings)", lost, lambda: _apply(pickle.loads(manifest["settings"])))
        self._attempt("(folder)", lost, lambda: os.chdir(self._folder / manifest["folder"]))
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


def _read_manifest(source: BinaryIO) -> dict[str, Any]:
    """Read the manifest at the end of a snapshot: names and sizes of its parts."""
    source.seek(-_LENGTH.size, os.SEEK_END)
    (length,) = _LENGTH.unpack(source.read())
    source.seek(-_LENGTH.size - length, os.SEEK_END)
    manifest: dict[str, Any] = msgpack.unpackb(
        source.read(length), unicode_errors="surrogatepass", strict_map_key=True
    )
    return manifest


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _folders(folder: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _settings() -> dict[str, Any]:
    """Return the global state of libraries: random states, matplotlib's settings, ``sys.path``."""
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
    """Truncate a name or reason, and make it valid Unicode."""
    return text[:_MAX_REASON_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")


def reported(lost: dict[str, str]) -> dict[str, str]:
    """Limit the report of lost variables and files to a readable length."""
    shown = {printable(name): reason for name, reason in list(lost.items())[:_MAX_NAMES]}
    if len(lost) > len(shown):
        shown["(others)"] = f"{len(lost) - len(shown)} more were lost"
    return shown
