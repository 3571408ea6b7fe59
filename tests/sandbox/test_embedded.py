"""Servers that belong to a process and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from deepeyes_plugins.sandbox import (
    SandboxClient,
    SandboxSettings,
    SandboxUnavailable,
    embedded,
    ensure_server,
    start_server,
)

from .conftest import children, eventually, running

ROOT = Path(__file__).parents[2]


async def busy_session(client: SandboxClient) -> int:
    """Starts a session with a busy thread and a file; returns its process id."""
    session = await client.create_session()
    result = await session.execute(
        "import os, threading\n"
        "open('left.txt', 'w').write('x')\n"
        "def spin():\n    while True: pass\n"
        "threading.Thread(target=spin).start()\n"
        "os.getpid()",
        timeout=10,
    )
    return int(result.result)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which servers keep their files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_stopped_server_leaves_no_process_and_no_file(
    temporary: Path, how: signal.Signals
) -> None:
    with start_server() as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await busy_session(client)
        family = children(server.pid)
        assert session in family and list(temporary.iterdir())
        assert Path(f"/proc/{session}/cwd/left.txt").exists()
        os.kill(server.pid, how)
        assert eventually(lambda: not any(map(running, family)))
        assert eventually(lambda: not list(temporary.iterdir()))
    assert not server.alive


async def test_close_is_idempotent_and_complete(temporary: Path) -> None:
    with start_server() as server:
        async with SandboxClient(server.url, token=server.token) as client:
            await busy_session(client)
        family = children(server.pid)
        server.close()
    assert not any(map(running, family)) and not list(temporary.iterdir())


def test_the_server_dies_with_its_parent() -> None:
    # Started in a thread that has ended, in a parent that is killed and cannot clean up.
    script = (
        "import threading, time\n"
        "from deepeyes_plugins.sandbox import start_server\n"
        "thread = threading.Thread(target=lambda: print(start_server().pid, flush=True))\n"
        "thread.start(); thread.join()\n"
        "threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        family = children(server) | {server}
        assert running(server) and len(family) >= 2
        parent.kill()
    assert eventually(lambda: not any(map(running, family)))


def test_ensure_server_prefers_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(embedded.URL_VARIABLE, "http://from-environment:1")
    assert ensure_server(SandboxSettings(url="http://given:1")) == "http://given:1"
    assert ensure_server(SandboxSettings()) == "http://from-environment:1"


async def test_ensure_server_starts_one_for_all_threads_and_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(embedded.URL_VARIABLE, "")
    monkeypatch.setenv("DEEPEYES_TOKEN_SANDBOX", "")
    barrier = threading.Barrier(4)

    def ensure() -> str:
        barrier.wait()
        return ensure_server()

    with ThreadPoolExecutor(4) as pool:
        urls = {future.result() for future in [pool.submit(ensure) for _ in range(4)]}
    assert len(urls) == 1
    child = (
        "import asyncio\n"
        "from deepeyes_plugins.sandbox import SandboxClient, ensure_server\n"
        "async def main():\n"
        "    async with SandboxClient(ensure_server()) as c, await c.create_session() as s:\n"
        "        print((await s.execute('6 * 7', 10)).result)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "42\n", done.stderr
    async with SandboxClient(urls.pop()) as client:
        assert (await client.health()).sessions == 0
    assert embedded._shared is not None
    embedded._shared.close()


def test_a_server_that_cannot_start_says_why() -> None:
    settings = SandboxSettings(warm_modules=("no_such_module",))
    with (
        pytest.warns(FutureWarning, match="start several servers"),
        pytest.raises(SandboxUnavailable, match="no_such_module"),
    ):
        start_server(settings, workers=2)


def test_an_unknown_kernel_is_named_with_those_that_there_are() -> None:
    with pytest.raises(SandboxUnavailable, match="no kernel 'nope': known are fork, jupyter"):
        start_server(SandboxSettings(kernel="nope"))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="memory"):
        SandboxSettings.model_validate({"memory": 1})


def test_a_server_for_the_command_line_reports_bad_settings() -> None:
    command = [sys.executable, "-m", "deepeyes_plugins.sandbox", "--settings", '{"memory": 1}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "memory" in done.stderr


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, deepeyes_plugins.sandbox\n"
        "print([m for m in ('httpx', 'starlette', 'IPython', 'numpy', 'torch', 'PIL') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
