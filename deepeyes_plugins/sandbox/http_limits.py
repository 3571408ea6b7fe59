"""HTTP as uvicorn speaks it, with an end to what a client may send before its request is known."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 256 << 10


class BoundedHttp(HttpToolsProtocol):
    """One connection. Its parser alone would keep a header of any size, from anybody."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What follows is a body, which the handlers bound."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The headers of this request are too large.")
                return
        super().data_received(data)
