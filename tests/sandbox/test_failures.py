"""Code that hangs, crashes or devours, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest

from deepeyes_plugins.sandbox import (
    EmbeddedServer,
    SandboxClient,
    SandboxSession,
    SandboxSettings,
    SandboxUnavailable,
    start_server,
)

from .conftest import children, eventually, gradient, png, running


async def test_a_timeout_keeps_state_and_partial_output(session: SandboxSession) -> None:
    result = await session.execute("x = 5\nprint('so far')\nwhile True: pass", timeout=0.3)
    assert (result.outcome, result.error_name) == ("timeout", "TimeoutError")
    assert result.stdout == "so far\n"
    assert "did not finish within 0.3 s" in result.stderr and "Variables are kept" in result.stderr
    assert result.duration < 2
    assert (await session.execute("x", timeout=10)).result == "5"


async def test_sleeping_and_awaiting_are_interrupted_too(session: SandboxSession) -> None:
    for code in ("import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)"):
        assert (await session.execute(code, timeout=0.3)).outcome == "timeout"
    assert (await session.execute("1 + 1", timeout=10)).result == "2"


@pytest.mark.parametrize(
    "code",
    [
        "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    ],
    ids=["swallows", "ignores", "stops", "native"],
)
async def test_code_that_does_not_react_is_killed(session: SandboxSession, code: str) -> None:
    started = time.monotonic()
    result = await session.execute(code, timeout=0.3)
    assert result.outcome in ("killed", "timeout")
    if "re.match" not in code:
        assert result.outcome == "killed" and "did not react" in result.stderr
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.closerange(0, 256)",
    ],
    ids=["exit", "segfault", "suicide", "hangup"],
)
async def test_a_dead_process_is_killed_now_and_lost_later(
    client: SandboxClient, session: SandboxSession, code: str
) -> None:
    async with await client.create_session() as neighbour:
        await neighbour.execute("x = 1", timeout=10)
        result = await session.execute(code, timeout=10)
        assert result.outcome == "killed" and "variables are gone" in result.stderr
        again = await session.execute("1", timeout=10)
        assert again.outcome == "lost" and again.stderr
        assert (await neighbour.execute("x", timeout=10)).result == "1"


async def test_a_memory_bomb_ends_with_its_cell(session: SandboxSession) -> None:
    result = await session.execute("bomb = bytearray(1 << 40)", timeout=10)
    assert (result.outcome, result.error_name) == ("error", "MemoryError")
    grown = await session.execute("hoard = []\nwhile True: hoard.append(' ' * (1 << 24))", 30)
    assert grown.outcome in ("error", "killed")


async def test_deep_recursion_is_an_error(session: SandboxSession) -> None:
    result = await session.execute("def f(): f()\nf()", timeout=20)
    assert result.error_name == "RecursionError" and len(result.stderr) < 4200


async def test_a_process_that_forges_replies_is_stopped(session: SandboxSession) -> None:
    result = await session.execute(
        "import os, socket\n"
        "for fd in range(3, 256):\n"
        "    try: os.write(fd, b'\\xff' * 64)\n"
        "    except OSError: pass",
        timeout=10,
    )
    assert result.outcome == "killed"


async def test_a_running_cell_can_be_interrupted(session: SandboxSession) -> None:
    cell = asyncio.ensure_future(session.execute("x = 1\nwhile True: pass", timeout=60))
    while not cell.done():
        await session.interrupt()
        await asyncio.wait({cell}, timeout=0.05)
    assert cell.result().error_name == "KeyboardInterrupt"
    assert (await session.execute("2", timeout=10)).result == "2"


async def test_closing_ends_a_running_cell_and_its_process(client: SandboxClient) -> None:
    session = await client.create_session()
    pid = int((await session.execute("import os; os.getpid()", timeout=10)).result)
    cell = asyncio.ensure_future(session.execute("while True: pass", timeout=60))
    await asyncio.wait({cell}, timeout=0.1)
    await session.close()
    await session.close()
    assert (await asyncio.wait_for(cell, 10)).outcome in ("killed", "lost")
    assert eventually(lambda: not running(pid))
    assert (await session.execute("1", timeout=10)).outcome == "lost"


async def test_an_idle_session_is_closed() -> None:
    with start_server(SandboxSettings(idle_timeout=0.3, max_sessions=1)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await client.create_session()
            pid = int((await session.execute("import os; os.getpid()", timeout=10)).result)
            assert eventually(lambda: not running(pid))
            assert (await session.execute("1", timeout=10)).outcome == "lost"


async def test_a_dead_zygote_is_replaced(server: EmbeddedServer, client: SandboxClient) -> None:
    image = png(gradient(11, 12))
    session = await client.create_session([image])
    pid = int((await session.execute("import os; os.getppid()", timeout=10)).result)
    assert pid in children(server.pid)
    cell = asyncio.ensure_future(session.execute("while True: pass", timeout=60))
    await asyncio.wait({cell}, timeout=0.1)
    os.kill(pid, signal.SIGKILL)
    assert (await asyncio.wait_for(cell, 10)).outcome == "killed"
    async with await client.create_session([image, png(gradient(13, 14))]) as fresh:
        assert (await fresh.execute("image_1.size, image_2.size", 10)).result == (
            "((11, 12), (13, 14))"
        )


async def test_a_zygote_that_dies_before_it_is_ready_is_replaced_too() -> None:
    with start_server(SandboxSettings(spare_sessions=0)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await client.create_session()
            first = int((await session.execute("import os; os.getppid()", timeout=10)).result)
            before = children(server.pid)
            os.kill(first, signal.SIGKILL)
            assert eventually(lambda: bool(children(server.pid) - before))
            (second,) = children(server.pid) - before
            os.kill(second, signal.SIGKILL)
            # Whoever waited for the second hears that it has died, and nobody after that.
            with contextlib.suppress(SandboxUnavailable):
                await (await client.create_session()).close()
            async with await client.create_session() as fresh:
                assert (await fresh.execute("6 * 7", timeout=10)).result == "42"


async def test_no_server_is_told_apart_from_bad_code() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with SandboxClient(url) as client:
        with pytest.raises(SandboxUnavailable, match="does not answer"):
            await client.create_session()
        with pytest.raises(SandboxUnavailable, match="does not answer"):
            await client.health()
