"""What a session holds, to bytes and back. Runs inside the session: both ways run its own code.

Every variable is a pickle of its own, all made by one pickler: so that what two variables share is
shared again, and one that fails takes only itself along. Functions see the session's own variables
afterwards, not a copy of them; the images of the question are named, not copied.
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
    """A file over memory of the server's, up to a limit.

    It is written through mappings: they are not held to the size that files may have.
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
    """Refers to the namespace and to the question's images instead of copying them."""

    def __init__(
        self, file: _MemoryWriter, namespace: Namespace, originals: dict[int, str]
    ) -> None:
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

    def __init__(self, file: BinaryIO, known: Namespace) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


class _ResumableUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, which another can continue after an error."""

    def __init__(self, pickled: bytes, known: Namespace, memo: dict[int, Any]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._known = known
        self.memo = memo

    def persistent_load(self, pid: str) -> Any:
        return self._known[pid]


def _load(
    source: BinaryIO, saved: dict[str, int], known: Namespace, lost: dict[str, str]
) -> Namespace:
    """Load all variables, or all but those that fail."""
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
        # What a failed one would have remembered has its number all the same.
        expected += sum(code.name == "MEMOIZE" for code, _, _ in pickletools.genops(pickled))
        memo.update((number, None) for number in range(len(memo), expected))
    return loaded


class SessionState:
    """Reads and writes the variables and files of the session that this process is."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        """Take what is there now for the session's beginning.

        Args:
            namespace: The variables of the shell.
            folder: The session's own folder.
        """
        self._namespace = namespace
        self._folder = folder
        self._initial_names = set(namespace)
        self._images: Namespace = {}

    def begin(self, images: dict[str, Any]) -> None:
        """Give the session its images, by the names that cells see."""
        self._images = images
        self._namespace.update(images)

    def names(self) -> list[str]:
        """Name that the session's code has made."""
        untouched = {
            name for name, image in self._images.items() if self._namespace.get(name) is image
        }
        return [name for name in self._all_names() if name not in untouched]

    def _all_names(self) -> list[str]:
        names = [
            name
            for name in list(self._namespace)  # Threads may add to it meanwhile.
            if isinstance(name, str)
            and name not in self._initial_names
            and not _IPYTHON_NAMES.fullmatch(name)
        ]
        return names[:_MAX_NAMES]

    def save(self, memory: int, max_bytes: int) -> dict[str, Any]:
        """Save all that can be saved: variables, files, then what tells them apart.

        Args:
            memory: File descriptor of memory to write it to, of some size over ``max_bytes``.
            max_bytes: Most that variables and files may take together.

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
        """Return what was written to, and the size of each variable in it."""
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
                # What the failed one put into the pickler's memory is in no file: start afresh.
                names = [other for other in names if other not in lost]
                break
            else:
                return target, saved

    def _originals(self) -> dict[int, str]:
        """The question's images that are what they were, by identity."""
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
        """Take over what ``save`` saved; returns what did not come back, with the reasons.

        Args:
            memory: File descriptor of memory that holds it, and nothing else.
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
    """Read the end of a snapshot: what is in it, and how large each piece is."""
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


def reported(lost: dict[str, str]) -> dict[str, str]:
    """What is reported of lost variables and files: not more than anyone reads."""
    shown = {printable(name): reason for name, reason in list(lost.items())[:_MAX_NAMES]}
    if len(lost) > len(shown):
        shown["(others)"] = f"{len(lost) - len(shown)} more were lost"
    return shown
