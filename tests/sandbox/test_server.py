"""The HTTP interface, for clients that are not ours."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from deepeyes_plugins.sandbox import EmbeddedServer, SandboxClient, SandboxError

from .conftest import decoded


@pytest_asyncio.fixture
async def http(server: EmbeddedServer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as opened:
        yield opened


async def test_json_with_base64_for_those_who_ask_for_nothing_else(http: httpx.AsyncClient) -> None:
    session = (await http.post("/v1/sessions", json={})).json()["id"]
    code = "from PIL import Image; print('x'); Image.new('L', (3, 3))"
    answer = await http.post(f"/v1/sessions/{session}/execute", json={"code": code, "timeout": 10})
    body = answer.json()
    assert (body["outcome"], body["stdout"]) == ("ok", "x\n")
    assert decoded(base64.b64decode(body["images"][0])).size == (3, 3)
    assert (await http.delete(f"/v1/sessions/{session}")).status_code == 204
    assert (await http.delete(f"/v1/sessions/{session}")).status_code == 204


async def test_missing_images_are_named(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/sessions", json={"images": ["0" * 64]})
    assert answer.status_code == 404 and answer.json()["missing"] == ["0" * 64]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/images/" + "0" * 64, b"x", 422),
        ("POST", "/v1/sessions", b"{", 422),
        ("POST", "/v1/sessions", b"[]", 422),
        ("POST", "/v1/sessions", b'{"images": [1]}', 422),
        ("POST", "/v1/sessions/none/execute", b'{"code": "1", "timeout": 0}', 422),
        ("POST", "/v1/sessions/none/execute", b'{"code": 1, "timeout": 1}', 422),
        ("POST", "/v1/sessions/none/execute", b'{"code": "1"}', 404),
        ("POST", "/v1/sessions/none/interrupt", b"", 404),
        ("GET", "/nothing", b"", 404),
    ],
)
async def test_wrong_requests_are_explained(
    http: httpx.AsyncClient, method: str, path: str, body: bytes, status: int
) -> None:
    answer = await http.request(method, path, content=body)
    assert answer.status_code == status and answer.json()["error"]


async def test_the_token_is_asked_for(server: EmbeddedServer) -> None:
    async with SandboxClient(server.url, token="wrong") as client:
        assert (await client.health()).status == "ok"
        with pytest.raises(SandboxError, match="bearer token"):
            await client.create_session()


async def test_legacy_clients_are_served(http: httpx.AsyncClient) -> None:
    async def run(code: str, timeout: float = 10) -> dict:
        body = {"session_id": "trajectory-1", "code": code, "timeout": timeout}
        return (await http.post("/jupyter_sandbox", json=body)).json()

    first = await run("x = 20\nprint('hi')")
    assert first["status"] == "success" and first["execution_time"] > 0
    assert first["output"] == {"result": "", "stdout": "hi\n", "stderr": "", "images": []}
    assert (await run("x + 1"))["output"]["result"] == "21"
    image = (await run("from PIL import Image; Image.new('L', (4, 4))"))["output"]["images"][0]
    assert decoded(base64.b64decode(image)).size == (4, 4)

    wrong = await run("for")
    assert wrong["status"] == "success"
    assert wrong["output"]["stderr"].startswith("SyntaxError - ")
    slow = await run("while True: pass", timeout=0.3)
    assert slow["status"] == "success" and "TimeoutError" in slow["output"]["stderr"]
    assert (await run("x"))["output"]["result"] == "20"
    assert (await run("import os; os._exit(1)"))["status"] == "error"

    assert (await run("x = 1"))["status"] == "success"
    cleared = await http.post("/clear_session", json={"session_id": "trajectory-1"})
    assert cleared.json() == {"status": "success"}
    assert "NameError" in (await run("x"))["output"]["stderr"]
    assert (await run("  "))["status"] == "error"
