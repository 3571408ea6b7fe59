"""A program that speaks the sandbox protocol and runs no code, to see what a client does.

Its sessions count their cells and keep that number in a folder, which servers share as they share a
Redis. What a cell does is one word of its code:

- `stop PORT`: the server on that port is killed before the cell has run; others run it.
- `finish PORT`: the same, after the cell has run and its state was kept.
- `refuse`: the answer is 422.
- `break`: the connection ends within the first answer of this server to such a cell.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class Protocol:
    def __init__(self, store: Path, port: int, max_sessions: int) -> None:
        self.store = store
        self.port = port
        self.max_sessions = max_sessions
        self.live: dict[str, int] = {}
        self.images: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def counted(self, request: Request) -> Response:
        return JSONResponse(self.counts)

    async def put_image(self, request: Request) -> Response:
        self.counts["uploads"] += 1
        await request.body()
        self.images.add(request.path_params["digest"])
        return Response(status_code=204)

    async def create(self, request: Request) -> Response:
        self.counts["creations"] += 1
        wanted = (await request.json())["images"]
        missing = [digest for digest in wanted if digest not in self.images]
        if missing:
            return JSONResponse({"missing": missing}, 404)
        if len(self.live) >= self.max_sessions:
            return JSONResponse({"error": "full"}, 503)
        session_id = f"{os.getpid():x}{next(self._numbers):x}"
        self.keep(session_id, 0)
        return JSONResponse({"id": session_id}, 201)

    async def execute(self, request: Request) -> Response:
        session_id = request.path_params["id"]
        body = await request.json()
        lost_names = {}
        if session_id not in self.live:
            if not self.kept(session_id).exists():
                return JSONResponse({"error": "gone"}, 404)
            self.live[session_id] = int(self.kept(session_id).read_text())
            lost_names = {"file": "an open file cannot be kept"}
        if self.live[session_id] > body["cell"]:
            return JSONResponse({"error": "it ran before"}, 409)
        if self.live[session_id] < body["cell"]:
            lost_names["earlier cells"] = "they did not run here"
        if body["code"] == "refuse":
            return JSONResponse({"error": "the code is refused"}, 422)
        if body["code"] == f"stop {self.port}":
            os.kill(os.getpid(), signal.SIGKILL)
        self.keep(session_id, self.live[session_id] + 1)
        if body["code"] == f"finish {self.port}":
            os.kill(os.getpid(), signal.SIGKILL)
        if body["code"] == "break" and not self.counts["broken"]:
            self.counts["broken"] += 1
            return StreamingResponse(half(), headers={"content-length": "9"})
        result = {
            "outcome": "ok",
            "result": f"{self.live[session_id]} cells",
            "lost_names": lost_names,
            "something_of_a_later_version": 1,
        }
        packed = Response(msgpack.packb(result), media_type="application/x-msgpack")
        return packed

    async def evict(self, request: Request) -> Response:
        self.counts["evictions"] += 1
        found = self.live.pop(request.path_params["id"], None) is not None
        return Response(status_code=204 if found else 404)

    async def close(self, request: Request) -> Response:
        self.live.pop(request.path_params["id"], None)
        self.kept(request.path_params["id"]).unlink(missing_ok=True)
        return Response(status_code=204)

    def kept(self, session_id: str) -> Path:
        return self.store / session_id

    def keep(self, session_id: str, cells: int) -> None:
        self.live[session_id] = cells
        self.kept(session_id).write_text(str(cells))


async def half() -> AsyncIterator[bytes]:
    yield b"half"


def main(store: str, port: str, max_sessions: str) -> None:
    listener = socket.create_server(("127.0.0.1", int(port)))
    protocol = Protocol(Path(store), listener.getsockname()[1], int(max_sessions))
    session = "/v1/sessions/{id}"
    app = Starlette(
        routes=[
            Route("/counts", protocol.counted),
            Route("/v1/images/{digest}", protocol.put_image, methods=["PUT"]),
            Route("/v1/sessions", protocol.create, methods=["POST"]),
            Route(f"{session}/execute", protocol.execute, methods=["POST"]),
            Route(f"{session}/evict", protocol.evict, methods=["POST"]),
            Route(session, protocol.close, methods=["DELETE"]),
        ]
    )
    print(json.dumps(f"http://127.0.0.1:{protocol.port}"), flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
