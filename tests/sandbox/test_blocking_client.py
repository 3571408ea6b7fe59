"""The client without await, from scripts, threads and notebooks."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest

from deepeyes_plugins.sandbox import (
    BlockingSandboxClient,
    EmbeddedServer,
    SandboxError,
    SandboxUnavailable,
)

from .conftest import gradient, png
from .processes import ROOT


@pytest.fixture
def blocking(server: EmbeddedServer) -> Iterator[BlockingSandboxClient]:
    with BlockingSandboxClient(server.url, token=server.token) as opened:
        yield opened


def test_a_session_from_its_first_cell_to_its_end(
    server: EmbeddedServer, blocking: BlockingSandboxClient
) -> None:
    before = blocking.health().sessions
    with blocking.create_session([png(gradient(30, 20))]) as session:
        assert session.execute("x = image_1.size\nx", timeout=10).result == "(30, 20)"
        session.interrupt()
        session.evict()
        assert session.execute("x", timeout=10).result == "(30, 20)"
        assert (session.server, blocking.urls) == (server.url, (server.url,))
        assert session.id
        assert blocking.health().sessions == before + 1
    assert blocking.health().sessions == before
    assert session.execute("x", timeout=10).outcome == "lost"


def test_many_threads_at_once(blocking: BlockingSandboxClient) -> None:
    everyone = threading.Barrier(8)

    def rollout(number: int) -> str:
        with blocking.create_session() as session:
            session.execute(f"x = {number}", timeout=30)
            everyone.wait(30)  # Eight sessions are open now.
            return session.execute("x", timeout=30).result

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(rollout, range(8))) == [str(number) for number in range(8)]


def test_another_thread_interrupts_a_cell(blocking: BlockingSandboxClient) -> None:
    with blocking.create_session() as session, ThreadPoolExecutor(1) as threads:
        cell = threads.submit(session.execute, "while True: pass", timeout=60)
        while not cell.done():
            session.interrupt()
            wait([cell], timeout=0.05)
        assert cell.result().error_name == "KeyboardInterrupt"


async def test_inside_a_running_event_loop_as_in_a_notebook(server: EmbeddedServer) -> None:
    with (
        BlockingSandboxClient(server.url, token=server.token) as client,
        client.create_session() as session,
    ):
        assert session.execute("1 + 1", timeout=10).result == "2"


def test_errors_are_those_of_the_client(blocking: BlockingSandboxClient) -> None:
    with pytest.raises(SandboxError, match="not a readable image"):
        blocking.create_session([b"no image"])
    with BlockingSandboxClient("http://127.0.0.1:9") as nobody:
        with pytest.raises(SandboxUnavailable, match="does not answer"):
            nobody.create_session()
        with pytest.raises(SandboxUnavailable, match="does not answer"):
            nobody.health()
    with pytest.raises(SandboxError, match="no URL"):
        BlockingSandboxClient("")


def test_a_script_that_forgets_to_close_ends_all_the_same(server: EmbeddedServer) -> None:
    script = (
        "from deepeyes_plugins.sandbox import BlockingSandboxClient\n"
        f"client = BlockingSandboxClient({server.url!r}, token={server.token!r})\n"
        "session = client.create_session()\n"
        "print(session.execute('6 * 7', timeout=10).result)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def test_closing_gives_up_what_other_threads_wait_for(server: EmbeddedServer) -> None:
    client = BlockingSandboxClient(server.url, token=server.token)
    session = client.create_session()
    with ThreadPoolExecutor(1) as threads:
        cell = threads.submit(session.execute, "while True: pass", timeout=60)
        wait([cell], timeout=0.2)
        client.close()
        with pytest.raises(CancelledError):
            cell.result(10)
    with pytest.raises(RuntimeError, match="was closed"):
        client.health()


def test_closing_ends_its_thread(server: EmbeddedServer) -> None:
    before = threading.active_count()
    client = BlockingSandboxClient(server.url, token=server.token)
    assert client.health().status == "ok"
    assert threading.active_count() > before
    client.close()
    client.close()
    assert threading.active_count() == before
