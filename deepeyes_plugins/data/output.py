"""Write files that are whole or not there, and never where they were read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deepeyes_plugins import files
from deepeyes_plugins.data.findings import DataError


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Hand out a temporary name beside ``target`` that takes its place if all goes well.

    What is written under that name is on the disk before it is renamed; whatever goes wrong, or is
    interrupted, leaves what was at ``target`` before.

    Raises:
        DataError: It cannot be written, for instance for want of space.
    """
    try:
        with files.whole_file(target, sync=True) as partial:
            yield partial
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}. What was finished before is "
            "kept: make room or choose another folder, and run the same again"
        ) from error


def write_text(target: Path, text: str) -> None:
    """Write a small file as a whole, in UTF-8 and with the line ends that it has.

    Raises:
        DataError: It cannot be written.
    """
    with whole_file(target) as partial:
        partial.write_bytes(text.encode("utf-8"))


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Make sure that nothing is written where something is read.

    Args:
        outputs: Files and folders that will be written.
        inputs: Files and folders that are read.

    Raises:
        DataError: An output is an input, or lies in an input that is a folder.
    """
    read = [path.resolve() for path in inputs]
    for output in outputs:
        for source in read:
            if output.resolve().is_relative_to(source):
                raise DataError(
                    f"{output} is or lies in {source}, which is read and must stay as it is; "
                    "choose another place for the output"
                )


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Keep a second run off the same output; a lock ends with the process that holds it.

    Raises:
        DataError: Another process is at work there, or the folder cannot be made.
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
