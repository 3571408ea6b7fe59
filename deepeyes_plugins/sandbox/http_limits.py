"""HTTP protocol of uvicorn with a limit on the size of request headers."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 256 << 10


class BoundedHttp(HttpToolsProtocol):
    """HTTP connection that rejects oversized headers, which uvicorn's parser would buffer."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """Count the bytes of a new request's head from zero."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting: the handlers limit the body."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or reject a request whose head is too large."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The headers of this request are too large.")
                return
        super().data_received(data)
