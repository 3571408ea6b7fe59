"""Stub search engine with Search-R1's protocol that responds at once and counts its requests."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SNIPPET = "What a page says about it, in the length that engines give. " * 4
calls = 0


async def retrieve(request: Request) -> JSONResponse:
    global calls
    asked = await request.json()
    calls += 1
    hits = [
        {"document": {"id": str(n), "contents": f'"Page {n}"\n{SNIPPET}'}, "score": 1 / (n + 1)}
        for n in range(asked["topk"])
    ]
    return JSONResponse({"result": [hits for _ in asked["queries"]]})


async def count(request: Request) -> JSONResponse:
    return JSONResponse(calls)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"listens on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    app = Starlette(routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/count", count)])
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
