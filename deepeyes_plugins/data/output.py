"""Atomic output files, locked and kept apart from the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deepeyes_plugins import files
from deepeyes_plugins.data.findings import DataError


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``target`` on success.

    The file is synced before the rename. An error or interruption leaves ``target`` unchanged.

    Raises:
        DataError: It cannot be written, for instance because the disk is full.
    """
    try:
        with files.whole_file(target, sync=True) as partial:
            yield partial
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}. Finished files are complete: "
            "free space or choose another folder, and run the command again"
        ) from error


def write_text(target: Path, text: str) -> None:
    """Write a small UTF-8 file atomically, with its line endings unchanged.

    Raises:
        DataError: It cannot be written.
    """
    with whole_file(target) as partial:
        partial.write_bytes(text.encode("utf-8"))


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write into inputs.

    Args:
        outputs: Files and folders that will be written.
        inputs: Files and folders that are read.

    Raises:
        DataError: An output is an input, or inside an input folder.
    """
    read = [path.resolve() for path in inputs]
    for output in outputs:
        for source in read:
            if output.resolve().is_relative_to(source):
                raise DataError(
                    f"{output} is, or is inside of, the input {source}, which must not change; "
                    "choose another output path"
                )


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock on an output; the lock ends with the process.

    Raises:
        DataError: Another process holds it, or the folder cannot be created.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(files.exclusive(lock, wait=False))
        except BlockingIOError as error:
            raise DataError(f"another process is writing to {lock.parent}; wait for it") from error
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{lock.parent} cannot be written: {reason}") from error
        yield
