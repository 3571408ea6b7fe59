"""Output limits of a cell, and truncation with visible markers."""

from __future__ import annotations

import io
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

MAX_IMAGE_BYTES: Final = 64 << 20
"""Maximum total size of the images of one cell."""

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

# Maximum number of characters of an escaped lone surrogate, and of a truncation marker.
_ESCAPED_CHARACTERS = 6
_MARK_CHARACTERS = 100


@dataclass(frozen=True)
class OutputLimits:
    """Limits of the output of one cell."""

    stdout_characters: int
    stderr_characters: int
    images: int
    image_pixels: int


def max_characters(limit: int) -> int:
    """Return the maximum length of text from a ``BoundedText`` of this limit, with its marker."""
    return _ESCAPED_CHARACTERS * limit + _MARK_CHARACTERS


class BoundedImages:
    """Images of one cell; those beyond the limits are counted, but not stored."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._dropped = 0
        self.images: list[bytes] = []

    @property
    def full(self) -> bool:
        """Whether the maximum number is reached, so that no further one need be encoded."""
        return len(self.images) >= self._limit

    def add(self, png: bytes) -> None:
        """Add an image, or drop it; one without bytes, which was not encoded, is always dropped."""
        self._bytes += len(png)
        if not png or self.full or self._bytes > MAX_IMAGE_BYTES:
            self._dropped += 1
        else:
            self.images.append(png)

    @property
    def note(self) -> str:
        """The line of stderr that says how many were dropped, and why; "" if none were."""
        if not self._dropped:
            return ""
        return (
            f"{self._dropped} images cut: a cell returns at most {self._limit}, and "
            f"{MAX_IMAGE_BYTES >> 20} MiB in all.\n"
        )


class BoundedText(io.TextIOBase):
    """Text stream that stores the beginning and the end of what is written to it.

    Its memory is bounded: the first half of the limit is a list, the last half a queue that drops
    its oldest chunks.
    """

    def __init__(self, limit: int) -> None:
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        # Threads of a cell may write after its end; a finalizer may write during a write.
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
        """Encoding of ``buffer``."""
        return "utf-8"

    @property
    def buffer(self) -> io.RawIOBase:
        """Byte stream that writes to this one, like ``sys.stdout.buffer``."""
        return self._buffer

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Write text, truncated to the limit; return its full length, as streams do."""
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
        """Return the text, with a marker where it is truncated, and clear the stream."""
        with self._lock:
            if self._tail_size > self._tail_limit:
                self._drop(self._tail_size - self._tail_limit)
            mark = f"\n... [{self._dropped} characters cut] ...\n" if self._dropped else ""
            text = "".join(self._head) + mark + "".join(self._tail)
            self._clear()
        # Lone surrogates cannot be encoded in UTF-8; all other characters are unchanged.
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
