"""A chat server that takes its time for every turn: `python chat.py LATENCY TOOL_TURNS CALL`.

It prints its port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ANSWER = "<think>Seen.</think>\n<answer>red</answer>"


async def chat(request: Request) -> Response:
    """Call a tool at first where tools are there, then answer."""
    body = json.loads(await request.body())
    await asyncio.sleep(float(sys.argv[1]))
    turns = sum(message["role"] == "assistant" for message in body["messages"])
    calling = body.get("stop") and turns < int(sys.argv[2])
    text = f"<think>Look.</think>\n{sys.argv[3]}" if calling else ANSWER
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
