"""The model of an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepeyes_plugins.remote.chat import ChatEndpoint
from deepeyes_plugins.remote.errors import RemoteUnavailableError
from deepeyes_plugins.remote.settings import RemoteSettings
from tests.serving import LocalServer


async def never(request: Request) -> Response:
    while not await request.is_disconnected():
        await asyncio.sleep(0.05)
    return Response()


async def test_conversations_wait_for_a_silent_server_together() -> None:
    settings = RemoteSettings(timeout=0.3, retries=0, circuit_failures=1000)
    with LocalServer(Route("/v1/models", never)) as server:
        async with (
            aclosing(ChatEndpoint(f"{server.root}/v1", settings)) as endpoint,
            asyncio.timeout(3),  # One after the other, they would take 9 seconds.
        ):
            asked = (endpoint.model() for _ in range(30))
            answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, RemoteUnavailableError) for answer in answers)
