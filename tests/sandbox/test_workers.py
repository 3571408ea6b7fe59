"""Several server processes behind one port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepeyes_plugins.sandbox import SandboxClient, SandboxSettings

from .conftest import children, eventually, gradient, png, running

ROOT = Path(__file__).parents[2]


class Server:
    """A server with several workers, started as its users do."""

    def __init__(self, workers: int, temporary: Path, settings: SandboxSettings) -> None:
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "deepeyes_plugins.sandbox", "--port", "0"),
                *("--workers", str(workers), "--settings", settings.model_dump_json()),
                *("--log-level", "warning", "--announce-fd", str(writing)),
            ],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(temporary)},
            pass_fds=[writing],
        )
        os.close(writing)
        with open(reading, encoding="utf-8") as announcement:
            self.url = f"http://127.0.0.1:{json.loads(announcement.readline())['port']}"

    @property
    def workers(self) -> dict[int, int]:
        """Number of the worker to its process id."""
        found = {}
        for pid in children(self.process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"--worker" in command:
                told = json.loads(command[command.index(b"--worker") + 1])
                found[told["pool"]["index"]] = pid
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(2, tmp_path, SandboxSettings(spare_sessions=0))
    yield started
    started.stop()


def worker(session_id: str) -> int:
    return int(session_id.partition("-")[0])


async def sessions_on_both(client: SandboxClient, server: Server) -> list[str]:
    """One session on each worker: the hash of its image decides."""
    found: dict[int, str] = {}
    for size in range(10, 40):
        session = await client.create_session([png(gradient(size, size))])
        found.setdefault(worker(session.id), session.id)
        if len(found) == 2:
            break
    return [found[0], found[1]]


async def test_every_session_is_reached_over_every_connection(server: Server) -> None:
    async with SandboxClient(server.url) as client:
        ids = await sessions_on_both(client, server)
    for number, session_id in enumerate(ids):
        execute = f"{server.url}/v1/sessions/{session_id}/execute"
        for attempt in range(6):  # Each over a connection of its own.
            answer = httpx.post(
                execute, json={"code": f"x = {number} if {attempt} == 0 else x\nx"}, timeout=30
            )
            assert answer.json()["result"] == str(number)
            assert answer.headers["x-sandbox-worker"] in ("0", "1")
        assert httpx.delete(f"{server.url}/v1/sessions/{session_id}").status_code == 204
        assert httpx.post(execute, json={"code": "1"}).status_code == 404


async def test_the_rollouts_of_a_prompt_share_its_worker_and_its_pixels(server: Server) -> None:
    image = png(gradient(200, 100))
    async with SandboxClient(server.url) as client:
        opened = await asyncio.gather(*(client.create_session([image]) for _ in range(16)))
        assert len({worker(session.id) for session in opened}) == 1
        sizes = await asyncio.gather(*(one.execute("image_1.size", 60) for one in opened))
        assert {result.result for result in sizes} == {"(200, 100)"}


async def test_a_session_may_have_images_of_several_workers(server: Server) -> None:
    images = [png(gradient(width, 20)) for width in range(30, 40)]
    async with SandboxClient(server.url) as client, await client.create_session(images) as session:
        result = await session.execute("[globals()[f'image_{n}'].width for n in range(1, 11)]", 30)
    assert result.result == str(list(range(30, 40)))


async def test_legacy_sessions_keep_their_state(server: Server) -> None:
    def run(session: str, code: str) -> str:
        body = {"session_id": session, "code": code, "timeout": 20}
        answer = httpx.post(f"{server.url}/jupyter_sandbox", json=body, timeout=30)
        return str(answer.json()["output"]["result"])

    for number in range(6):
        run(f"trajectory-{number}", f"x = {number}")
    assert [run(f"trajectory-{number}", "x") for number in range(6)] == list("012345")


async def test_health_and_metrics_add_up(server: Server) -> None:
    async with SandboxClient(server.url) as client:
        ids = await sessions_on_both(client, server)
        for session_id in ids:
            httpx.post(
                f"{server.url}/v1/sessions/{session_id}/execute", json={"code": "1"}, timeout=30
            )
        health = await client.health()
    assert health.workers == 2 and health.sessions >= 2
    text = httpx.get(f"{server.url}/metrics").text
    cells = {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "deepeyes_sandbox_cells_total"
    }
    assert cells == {"ok": 2.0}


async def test_a_killed_worker_takes_only_its_sessions_along(server: Server) -> None:
    async with SandboxClient(server.url) as client:
        ids = await sessions_on_both(client, server)
    execute = [f"{server.url}/v1/sessions/{session_id}/execute" for session_id in ids]
    for url in execute:
        httpx.post(url, json={"code": "x = 1"}, timeout=30)
    victim = server.workers[0]
    family = children(victim)
    os.kill(victim, signal.SIGKILL)
    assert httpx.post(execute[1], json={"code": "x"}, timeout=30).json()["result"] == "1"
    assert eventually(lambda: 0 in server.workers and server.workers[0] != victim)
    assert eventually(lambda: not any(map(running, family)))
    async with SandboxClient(server.url) as client:
        assert await asyncio.to_thread(eventually, lambda: gone(execute[0]), 20)
        async with await client.create_session([png(gradient(15, 15))]) as session:
            assert (await session.execute("image_1.size", 30)).result == "(15, 15)"


def gone(url: str) -> bool:
    try:
        return httpx.post(url, json={"code": "x"}, timeout=30).status_code == 404
    except httpx.TransportError:
        return False  # The worker that took the connection has just died.


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_stopped_server_leaves_no_process_and_no_file(
    tmp_path: Path, how: signal.Signals
) -> None:
    server = Server(2, tmp_path, SandboxSettings())
    async with SandboxClient(server.url) as client:
        await sessions_on_both(client, server)
    family = children(server.process.pid)
    assert len(family) > 4
    server.process.send_signal(how)
    server.process.wait(30)
    assert eventually(lambda: not any(map(running, family)))
    assert eventually(lambda: not list(tmp_path.iterdir())), list(tmp_path.rglob("*"))


def test_a_server_whose_workers_cannot_start_says_why() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deepeyes_plugins.sandbox", "--port", "0", "--workers", "2"),
            *("--settings", '{"warm_modules": ["no_such_module"]}'),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and "no_such_module" in done.stderr
