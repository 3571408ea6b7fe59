"""A chat server that takes a second for every turn: `python sampling_stub.py`, prints its port."""

from __future__ import annotations

import asyncio
import json
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LATENCY = 1.0
CODE = "<think>Look.</think>\n<code>\n```python\nimage_1.crop((0, 0, 64, 64))\n```\n</code>"
ANSWER = "<think>Seen.</think>\n<answer>red</answer>"


async def chat(request: Request) -> Response:
    """Code at first where tools are there, then an answer."""
    body = json.loads(await request.body())
    await asyncio.sleep(LATENCY)
    turns = sum(message["role"] == "assistant" for message in body["messages"])
    text = CODE if body.get("stop") and not turns else ANSWER
    message = {"role": "assistant", "content": text}
    return JSONResponse(
        {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": {}}
    )


async def models(request: Request) -> Response:
    """One model."""
    return JSONResponse({"object": "list", "data": [{"id": "stub", "object": "model"}]})


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listening.getsockname()[1], flush=True)
    routes = [
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), log_level="error")
    asyncio.run(uvicorn.Server(config).serve([listening]))
