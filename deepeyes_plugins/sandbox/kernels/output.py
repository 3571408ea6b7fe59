"""What a cell may put out, and the marks where that was too much."""

from __future__ import annotations

import io
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

MAX_IMAGE_BYTES: Final = 64 << 20
"""Most that the images of one cell may hold together."""

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

# A lone surrogate is told by so many characters, a cut by fewer than these.
_ESCAPED_CHARACTERS = 6
_MARK_CHARACTERS = 100


@dataclass(frozen=True)
class OutputLimits:
    """What one cell may return."""

    stdout_characters: int
    stderr_characters: int
    images: int
    image_pixels: int


def max_returned_characters(limit: int) -> int:
    """Characters that a ``BoundedText`` of this limit can return, its mark included."""
    return _ESCAPED_CHARACTERS * limit + _MARK_CHARACTERS


def images_cut(dropped: int, limit: int) -> str:
    """The line that says how many images were left out, and why."""
    return (
        f"{dropped} images cut: a cell returns at most {limit}, and {MAX_IMAGE_BYTES >> 20} MiB "
        "in all.\n"
    )


class BoundedText(io.TextIOBase):
    """A text stream that keeps the beginning and the end of what is written to it.

    Memory stays bounded however much is written: the first half of the limit is tail as it comes,
    the last half in a queue that forgets its oldest piece.
    """

    def __init__(self, limit: int) -> None:
        """Keep at most ``limit`` characters, and a mark."""
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        # Threads of a cell write after its end, too. A finaliser may write within a write.
        self._lock = threading.RLock()
        self._clear()
        self._buffer = _ByteStream(self)

    def _clear(self) -> None:
        self._head: list[str] = []
        self._head_size = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._dropped = 0

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What ``buffer`` takes bytes for."""
        return "utf-8"

    @property
    def buffer(self) -> io.RawIOBase:
        """The byte stream beneath, as ``sys.stdout.buffer``."""
        return self._buffer

    def writable(self) -> bool:
        """True, and only that."""
        return True

    def write(self, text: str) -> int:
        """Keep what there is room for; returns the length of the text, as streams do."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            self._append(text)
        return len(text)

    def _append(self, text: str) -> None:
        room = self._head_limit - self._head_size
        if room > 0 and text:
            self._head.append(text[:room])
            self._head_size += len(self._head[-1])
        rest = len(text) - max(room, 0)
        if rest > 0:
            tail = text[-min(rest, self._tail_limit) :]
            self._dropped += rest - len(tail)
            self._tail.append(tail)
            self._tail_size += len(tail)
            while self._tail_size - len(self._tail[0]) >= self._tail_limit:
                self._drop(len(self._tail[0]))

    def _drop(self, count: int) -> None:
        oldest = self._tail.popleft()
        if count < len(oldest):
            self._tail.appendleft(oldest[count:])
        self._tail_size -= count
        self._dropped += count

    def take(self) -> str:
        """Return what is tail, with a mark where something is missing, and starts afresh."""
        with self._lock:
            if self._tail_size > self._tail_limit:
                self._drop(self._tail_size - self._tail_limit)
            mark = f"\n... [{self._dropped} characters cut] ...\n" if self._dropped else ""
            text = "".join(self._head) + mark + "".join(self._tail)
            self._clear()
        # A lone surrogate has no UTF-8 form; every other character passes through.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _ByteStream(io.RawIOBase):
    def __init__(self, text: BoundedText) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._text.write(raw.decode("utf-8", "replace"))
        return len(raw)
