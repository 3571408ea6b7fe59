"""Frames on the socket between the server and a session: a 4-byte length, then msgpack."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

import msgpack

HEADER: Final = struct.Struct("!I")
MAX_FRAME_BYTES: Final = 128 << 20
MAX_FILE_DESCRIPTORS: Final = 200


class WireError(Exception):
    """A peer sent something that is no frame."""


def pack(message: Any) -> bytes:
    """Encodes one message; lone surrogates in its strings survive."""
    body: bytes = msgpack.packb(message, unicode_errors="surrogatepass")
    return HEADER.pack(len(body)) + body


def unpack(body: bytes | bytearray | memoryview) -> Any:
    """Decodes the body of one frame.

    Raises:
        WireError: The body is no msgpack, whatever is wrong with it.
    """
    try:
        return msgpack.unpackb(body, unicode_errors="surrogatepass", strict_map_key=True)
    except Exception as error:
        raise WireError(f"broken frame: {error}") from error


def send(sock: socket.socket, message: Any) -> None:
    """Sends one message on a blocking socket."""
    sock.sendall(pack(message))


def receive(
    sock: socket.socket, max_frame_bytes: int = MAX_FRAME_BYTES
) -> tuple[Any, list[int]] | None:
    """Receives one message and the file descriptors that came with it from a blocking socket.

    Returns:
        The message and its descriptors, or None when the peer has closed.
    """
    header, descriptors, _, _ = socket.recv_fds(sock, HEADER.size, MAX_FILE_DESCRIPTORS)
    while 0 < len(header) < HEADER.size:
        header += sock.recv(HEADER.size - len(header)) or b"\0" * HEADER.size
    if not header:
        return None
    (size,) = HEADER.unpack(header)
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
