"""Sessions that outlive their server, through a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepeyes_plugins.sandbox import (
    EmbeddedServer,
    ExecutionResult,
    SandboxClient,
    SandboxSession,
    SandboxSettings,
    start_server,
)
from tests.redis_server import RedisServer

from .conftest import eventually, gradient, png


class Redis(RedisServer):
    """What the sandbox has saved in Redis."""

    def saved(self, session: SandboxSession) -> bool:
        return bool(self.connection().exists(f"deepeyes:sandbox:session:{session.id}"))

    def forget(self) -> None:
        self.connection().flushall()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


def settings(redis_server: Redis, **others: object) -> SandboxSettings:
    return SandboxSettings(redis_url=redis_server.url, spare_sessions=0, **others)


@pytest.fixture
def servers(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    monkeypatch.setenv("DEEPEYES_TOKEN_SANDBOX", "shared-by-both")
    with start_server(settings(redis_server)) as one, start_server(settings(redis_server)) as two:
        yield one, two


async def elsewhere(
    server: EmbeddedServer, session: SandboxSession, code: str, **fields: object
) -> httpx.Response:
    """Asks another server for a cell of the session."""
    headers = {"Authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as http:
        path = f"/v1/sessions/{session.id}/execute"
        return await http.post(path, json={"code": code, **fields})


async def saved(redis_server: Redis, session: SandboxSession) -> None:
    assert await asyncio.to_thread(eventually, lambda: redis_server.saved(session))


async def test_a_killed_servers_session_lives_on_with_its_images(
    redis_server: Redis, servers: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    one, two = servers
    async with SandboxClient(one.url) as first:
        session = await first.create_session([png(gradient(31, 17))])
        await session.execute("x = 41\nnumbers = iter(range(3))\nunsaved = (n for n in 'ab')", 10)
        await saved(redis_server, session)
        os.kill(one.pid, signal.SIGKILL)
        answer = await elsewhere(two, session, "x + next(numbers), image_1.size")
    there = answer.json()
    assert (there["outcome"], there["result"]) == ("ok", "(41, (31, 17))")
    assert list(there["lost_names"]) == ["unsaved"]


async def test_a_server_that_is_stopped_saves_what_it_has(
    servers: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    one, two = servers
    async with SandboxClient(one.url) as first:
        sessions = [await first.create_session() for _ in range(8)]
        for number, session in enumerate(sessions):
            await session.execute(f"x = {number}", 10)
        one.close()
        there = [(await elsewhere(two, session, "x")).json() for session in sessions]
    assert [result["result"] for result in there] == [str(number) for number in range(8)]


async def test_a_server_that_was_cut_off_does_not_write_over_the_new_owner(
    redis_server: Redis, servers: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    one, two = servers
    async with SandboxClient(one.url) as first:
        session = await first.create_session()
        await session.execute("x = 'old'", 10)
        await saved(redis_server, session)
        assert (await elsewhere(two, session, "x = 'new'")).status_code == 200
        # The first server still has its process, and now hears that it is the owner no more.
        await session.execute("x = 'stale'", 10)
        assert await asyncio.to_thread(eventually, lambda: asyncio.run(live_sessions(one)) == 0)
        assert (await elsewhere(two, session, "x")).json()["result"] == "'new'"


async def live_sessions(server: EmbeddedServer) -> int:
    async with SandboxClient(server.url, token=server.token) as client:
        return (await client.health()).sessions


async def test_redis_may_go_and_come_back_during_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPEYES_TOKEN_SANDBOX", "shared-by-both")
    own = Redis(tmp_path)
    own.start()
    with start_server(settings(own, max_sessions=2)) as one, start_server(settings(own)) as two:
        async with SandboxClient(one.url) as first:
            sessions = [await first.create_session() for _ in range(2)]
            for session in sessions:
                await session.execute("x = [1]", 10)
            own.stop()
            # Cells, new sessions and even putting away go on.
            sessions += [await first.create_session() for _ in range(2)]
            for session in sessions[2:]:
                await session.execute("x = [1]", 30)
            results: list[ExecutionResult] = []
            for session in sessions:
                results.append(await session.execute("x.append(2); x", 60))
            assert [result.result for result in results] == ["[1, 2]"] * 4
            own.start()
            # Sessions that were evicted meanwhile, and those that were not, are all saved.
            for session in sessions:
                await saved(own, session)
            os.kill(one.pid, signal.SIGKILL)
            for session in sessions:
                there = (await elsewhere(two, session, "x")).json()
                assert there["result"] == "[1, 2]"
    own.stop()


async def test_closed_sessions_leave_nothing_in_redis(
    redis_server: Redis, servers: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    async with SandboxClient(servers[0].url) as client:
        session = await client.create_session()
        await session.execute("x = 1", 10)
        await saved(redis_server, session)
        await session.close()
        assert await asyncio.to_thread(eventually, lambda: not redis_server.saved(session))


async def test_sessions_in_redis_expire(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.forget()
    with start_server(settings(redis_server, idle_timeout=100)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await client.create_session([png(gradient())])
            await session.execute("x = 1", 10)
            await saved(redis_server, session)
            keys = redis_server.connection().keys("deepeyes:sandbox:*")
            lifetimes = [redis_server.connection().pttl(key) for key in keys]
    assert lifetimes and all(0 < lifetime <= 100_000 for lifetime in lifetimes)


async def test_a_cell_goes_before_a_snapshot(
    servers: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    async with SandboxClient(servers[0].url) as client, await client.create_session() as session:
        await session.execute(
            "import time\nclass Slow:\n    def __reduce__(self): time.sleep(30)\nslow = Slow()", 10
        )
        await asyncio.sleep(0.5)  # The snapshot has begun and hangs in the session's own code.
        result = await asyncio.wait_for(session.execute("1 + 1", timeout=10), 5)
    assert result.result == "2"


async def test_a_cell_that_has_run_is_not_run_twice(
    redis_server: Redis, servers: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    one, two = servers
    async with SandboxClient(one.url) as first:
        session = await first.create_session()
        await session.execute("x = 1", 10)
        await session.execute("x += 1", 10)
        await saved(redis_server, session)
        assert await asyncio.to_thread(
            eventually,
            lambda: (
                b"\xa5cells\x02"
                in (
                    redis_server.connection().hget(
                        f"deepeyes:sandbox:session:{session.id}", "session"
                    )
                    or b""
                )
            ),
        )
        os.kill(one.pid, signal.SIGKILL)
        # This client has seen one result only, as if the answer to the second had been lost.
        answer = await elsewhere(two, session, "x += 1", cell=1)
        assert answer.status_code == 409 and "has run already" in answer.json()["error"]
        assert (await elsewhere(two, session, "x")).json()["result"] == "2"
