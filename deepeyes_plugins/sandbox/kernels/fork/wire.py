"""Wire format between the server and a forked session.

A frame is two 4-byte lengths, a msgpack message, and the bulk: bytes that are not parsed. Messages
are small, so a forged one costs the server milliseconds at most.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

import msgpack

HEADER: Final = struct.Struct("!II")
MAX_FRAME_BYTES: Final = 128 << 20
MAX_FILE_DESCRIPTORS: Final = 200
_MAX_ITEMS: Final = 1 << 14
_MAX_CONTAINERS: Final = 64


class WireError(Exception):
    """A peer sent an invalid frame."""


def pack(message: Any, bulk: bytes = b"") -> bytes:
    """Encode a frame; lone surrogates in strings are preserved."""
    body: bytes = msgpack.packb(message, unicode_errors="surrogatepass")
    return HEADER.pack(len(body), len(bulk)) + body + bulk


def unpack(body: bytes | bytearray | memoryview) -> Any:
    """Decode the message of a frame.

    Raises:
        WireError: It is not valid msgpack.
    """
    try:
        return msgpack.unpackb(body, unicode_errors="surrogatepass", strict_map_key=True)
    except Exception as error:
        raise WireError(f"broken frame: {error}") from error


def unpack_untrusted(body: bytes) -> Any:
    """Decode a message from an untrusted process; its strings become valid Unicode.

    Raises:
        WireError: It is not valid msgpack, or has too many items.
    """
    containers = 0

    def count(items: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > _MAX_CONTAINERS:
            raise ValueError("too many lists and maps")
        return items

    try:
        return msgpack.unpackb(
            body,
            unicode_errors="replace",
            strict_map_key=True,
            list_hook=count,
            object_hook=count,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except Exception as error:
        raise WireError(f"broken frame: {error}") from error


def send(sock: socket.socket, message: Any, bulk: bytes = b"") -> None:
    """Send a frame on a blocking socket."""
    sock.sendall(pack(message, bulk))


def receive(
    sock: socket.socket, max_frame_bytes: int = MAX_FRAME_BYTES
) -> tuple[Any, list[int]] | None:
    """Receive a frame without bulk, and its file descriptors, from a blocking socket.

    Returns:
        The message and its descriptors, or None if the peer has closed the connection.

    Raises:
        WireError: The frame is invalid, too large, or has bulk.
    """
    header, descriptors, _, _ = socket.recv_fds(sock, HEADER.size, MAX_FILE_DESCRIPTORS)
    while 0 < len(header) < HEADER.size:
        header += sock.recv(HEADER.size - len(header)) or b"\0" * HEADER.size
    if not header:
        return None
    size, bulk = HEADER.unpack(header)
    if bulk:
        raise WireError("unexpected bulk in a frame")
    if size > max_frame_bytes:
        raise WireError(f"a frame of {size} bytes is over the limit of {max_frame_bytes}")
    body = bytearray(size)
    view = memoryview(body)
    while view:
        count = sock.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return unpack(body), descriptors
