"""The client of several servers: where sessions go, and what happens when a server fails."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from redis import Redis

from deepeyes_plugins.sandbox import (
    EmbeddedServer,
    ExecutionResult,
    SandboxClient,
    SandboxError,
    SandboxSession,
    SandboxSettings,
    SandboxUnavailable,
    start_server,
)

from .conftest import eventually, gradient, png

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are used together share a token, as they would in a cluster."""
    monkeypatch.setenv("DEEPEYES_TOKEN_SANDBOX", "a token")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """Two servers; each takes 80 sessions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPEYES_TOKEN_SANDBOX", "a token")
        settings = SandboxSettings(max_sessions=80, memory_mb=512)
        with start_server(settings) as one, start_server(settings) as two:
            yield one, two


@pytest.fixture
def short_lived() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers for one test."""
    with contextlib.ExitStack() as stack:

        def start(max_sessions: int = 100, redis_url: str | None = None) -> EmbeddedServer:
            settings = SandboxSettings(
                max_sessions=max_sessions, redis_url=redis_url, room_timeout=0.1
            )
            return stack.enter_context(start_server(settings))

        yield start


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of this test alone."""
    path = tmp_path / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as process,
        Redis(unix_socket_path=str(path)) as redis,
    ):
        assert eventually(path.exists)
        yield redis
        process.terminate()


@pytest.fixture
def nobody() -> str:
    """A URL on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def elsewhere(url: str) -> str:
    """The same server by a name that does not tell that it is on this machine."""
    return url.replace("127.0.0.1", "127。0。0。1")


async def close_all(sessions: list[SandboxSession]) -> None:
    await asyncio.gather(*(session.close() for session in sessions))


class TestUrls:
    async def test_a_string_may_hold_several(self) -> None:
        urls = "http://10.0.0.1:80/, http://10.0.0.2:80,,http://10.0.0.1:80"
        async with SandboxClient(urls) as client:
            assert client.urls == ("http://10.0.0.1:80", "http://10.0.0.2:80")

    async def test_servers_of_this_machine_come_first_and_the_order_is_kept(self) -> None:
        far = ["http://10.9.8.7:1", "https://sandbox.example:2", "http://[2001:db8::1]:3"]
        near = ["http://localhost:4", "http://127.0.0.2:5", "http://[::1]:6"]
        async with SandboxClient([far[0], *near, *far[1:]]) as client:
            assert client.urls == (*near, *far)

    async def test_the_own_name_and_address_are_known(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("10.9.8.7", 9))  # Sends nothing; chooses the address to send from.
            address = probe.getsockname()[0]
        own = [f"http://{address}:1", f"http://{socket.gethostname()}:2"]
        async with SandboxClient(["http://10.9.8.7:1", *own]) as client:
            assert client.urls == (*own, "http://10.9.8.7:1")

    @pytest.mark.parametrize("urls", ["", " , ", [], "localhost:80", "http://", "http://h:x"])
    def test_what_is_no_url_is_told_at_once(self, urls: str) -> None:
        with pytest.raises(SandboxError, match="URL of a sandbox server"):
            SandboxClient(urls)


class TestNewSessions:
    async def test_are_spread_over_equal_servers(
        self, pair: tuple[EmbeddedServer, EmbeddedServer]
    ) -> None:
        one, two = pair
        async with SandboxClient(f"{one.url},{two.url}") as client:
            sessions = await asyncio.gather(*(client.create_session() for _ in range(10)))
            assert Counter(session.server for session in sessions) == {one.url: 5, two.url: 5}
            await close_all([session for session in sessions if session.server == one.url])
            more = [await client.create_session() for _ in range(4)]
            assert {session.server for session in more} == {one.url}
            await close_all([*sessions, *more])

    async def test_sixty_four_at_once_keep_their_variables_apart(
        self, pair: tuple[EmbeddedServer, EmbeddedServer]
    ) -> None:
        async with SandboxClient([server.url for server in pair]) as client:

            async def rollout(number: int) -> int:
                async with await client.create_session() as session:
                    await session.execute(f"x = {number}", timeout=60)
                    return int((await session.execute("x", timeout=60)).result)

            assert await asyncio.gather(*map(rollout, range(64))) == list(range(64))

    async def test_go_elsewhere_only_when_this_machine_is_full(
        self, short_lived: Callable[..., EmbeddedServer]
    ) -> None:
        near, far = short_lived(max_sessions=2), short_lived(max_sessions=1)
        async with SandboxClient([elsewhere(far.url), near.url]) as client:
            sessions: list[SandboxSession] = []
            cells: set[asyncio.Task[ExecutionResult]] = set()
            for _ in range(3):
                sessions.append(await client.create_session())
                # Busy, since a server may put idle ones away to make room.
                cell = sessions[-1].execute("import time; time.sleep(60)", timeout=60)
                cells.add(asyncio.create_task(cell))
                await asyncio.wait(cells, timeout=0.3)
            homes = [session.server for session in sessions]
            assert homes == [near.url, near.url, elsewhere(far.url)]
            with pytest.raises(SandboxUnavailable) as refusal:
                await client.create_session()
            assert f"{near.url} answered 503: all 2 sessions are" in str(refusal.value)
            assert f"{elsewhere(far.url)} answered 503: all 1 sessions are" in str(refusal.value)
            await sessions[0].close()
            again = await client.create_session()
            assert again.server == near.url
            await close_all([*sessions, again])
            await asyncio.gather(*cells)

    async def test_avoid_a_server_that_refused_until_it_had_a_rest(
        self, start: Callable[..., ProtocolServer]
    ) -> None:
        near, far = start(max_sessions=2), start()
        async with SandboxClient([near.url, elsewhere(far.url)]) as client:
            sessions = [await client.create_session() for _ in range(3)]
            homes = [session.server for session in sessions]
            assert homes == [near.url, near.url, elsewhere(far.url)]
            await close_all(sessions)
            # Now there is room, which nobody looks for yet.
            async with await client.create_session() as early:
                assert early.server == elsewhere(far.url)
            async with asyncio.timeout(10):
                while True:
                    async with await client.create_session() as later:
                        if later.server == near.url:
                            break
            # It is trusted as before.
            both = await asyncio.gather(*(client.create_session() for _ in range(2)))
            assert {session.server for session in both} == {near.url}

    async def test_pass_by_a_server_that_is_not_there(
        self, pair: tuple[EmbeddedServer, EmbeddedServer], nobody: str
    ) -> None:
        async with SandboxClient([nobody, elsewhere(pair[0].url)]) as client:
            async with await client.create_session() as session:
                assert (await session.execute("1 + 1", timeout=10)).result == "2"
            assert (await client.health()).status == "ok"

    async def test_pass_by_a_server_that_says_nothing_which_one_at_a_time_finds_out(
        self, start: Callable[..., ProtocolServer]
    ) -> None:
        asked = 0

        async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await reader.read()

        silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        url = "http://127.0.0.1:{1}".format(*silent.sockets[0].getsockname())
        async with silent, SandboxClient([url, elsewhere(start().url)], timeout=3) as client:
            await client.create_session()  # There is time left for the second server.
            assert asked == 1
            await client.create_session()
            assert asked == 1
            while asked == 1:
                await close_all(await asyncio.gather(*(client.create_session() for _ in range(4))))
            assert asked == 2

    async def test_without_any_server_all_are_named(self, nobody: str) -> None:
        async with SandboxClient([nobody, elsewhere(nobody)]) as client:
            for request in (client.create_session, client.health):
                with pytest.raises(SandboxUnavailable) as failure:
                    await request()
                for url in (nobody, elsewhere(nobody)):
                    assert f"the sandbox at {url} does not answer" in str(failure.value)

    async def test_a_refused_image_is_no_reason_to_ask_the_next_server(
        self, pair: tuple[EmbeddedServer, EmbeddedServer]
    ) -> None:
        async with SandboxClient([server.url for server in pair]) as client:
            with pytest.raises(SandboxError, match="not a readable image") as refusal:
                await client.create_session([b"no image"])
            assert not isinstance(refusal.value, SandboxUnavailable)


class TestCells:
    async def test_of_one_session_run_in_the_order_in_which_they_were_given(
        self, pair: tuple[EmbeddedServer, EmbeddedServer]
    ) -> None:
        async with (
            SandboxClient(pair[0].url) as client,
            await client.create_session() as session,
        ):
            await session.execute("seen = []", timeout=10)
            cells = (session.execute(f"seen.append({n})", timeout=10) for n in range(20))
            await asyncio.gather(*cells)
            assert (await session.execute("seen", timeout=10)).result == str(list(range(20)))

    async def test_without_a_store_a_killed_servers_sessions_are_lost_and_others_go_on(
        self, short_lived: Callable[..., EmbeddedServer]
    ) -> None:
        doomed, other = short_lived(), short_lived()
        async with SandboxClient(f"{doomed.url},{other.url}") as client:
            sessions = await asyncio.gather(*(client.create_session() for _ in range(8)))
            homes = [session.server for session in sessions]
            await asyncio.gather(*(session.execute("x = 1", timeout=10) for session in sessions))
            sleeping = "import time; print('begun'); time.sleep(1); x"
            cells = [
                asyncio.create_task(session.execute(sleeping, timeout=10)) for session in sessions
            ]
            await asyncio.wait(cells, timeout=0.3)
            os.kill(doomed.pid, signal.SIGKILL)
            results = await asyncio.gather(*cells)
            expected = ["lost" if home == doomed.url else "ok" for home in homes]
            assert [result.outcome for result in results] == expected
            assert {result.result for result in results} == {"", "1"}
            async with await client.create_session() as fresh:
                assert fresh.server == other.url
            await close_all(sessions)

    async def test_with_a_shared_redis_a_killed_servers_sessions_go_on_elsewhere(
        self, short_lived: Callable[..., EmbeddedServer], redis: Redis, tmp_path: Path
    ) -> None:
        doomed, other = (
            short_lived(redis_url=f"unix://{tmp_path / 'redis.sock'}") for _ in range(2)
        )
        async with SandboxClient([doomed.url, elsewhere(other.url)]) as client:
            session = await client.create_session([png(gradient(30, 20))])
            await session.execute("x = image_1.size; g = (n for n in x)", timeout=10)
            assert eventually(lambda: bool(redis.keys(f"*{session.id}*")))
            cell = asyncio.create_task(
                session.execute("import time; time.sleep(1); x, image_1.size", timeout=10)
            )
            await asyncio.wait({cell}, timeout=0.3)
            os.kill(doomed.pid, signal.SIGKILL)
            result = await cell
            assert (result.outcome, result.result) == ("ok", "((30, 20), (30, 20))")
            assert list(result.lost_names) == ["g"]
            assert session.server == elsewhere(other.url)
            await session.evict()
            again = await session.execute("x", timeout=10)
            assert (again.result, again.lost_names) == ("(30, 20)", {})
            await session.close()

    async def test_with_a_single_server_its_death_is_an_error(
        self, short_lived: Callable[..., EmbeddedServer]
    ) -> None:
        server = short_lived()
        async with SandboxClient(server.url) as client:
            session = await client.create_session()
            cell = asyncio.create_task(session.execute("while True: pass", timeout=60))
            await asyncio.wait({cell}, timeout=0.3)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(SandboxUnavailable, match=f"{server.url} does not answer"):
                await asyncio.wait_for(cell, 10)
            for request in (session.interrupt, session.evict, client.create_session):
                with pytest.raises(SandboxUnavailable, match="does not answer"):
                    await request()
            await session.close()
            assert (await session.execute("1", timeout=10)).outcome == "lost"

    async def test_a_server_of_something_else_is_told(
        self, start: Callable[..., ProtocolServer]
    ) -> None:
        async with SandboxClient(start().url) as client:
            with pytest.raises(SandboxError, match="answered 404"):
                await client.health()
        async with SandboxClient(f"{start().url}/nothing/here") as client:
            with pytest.raises(SandboxError, match="is not a sandbox server"):
                await client.create_session()


class ProtocolServer:
    """The program of protocol_server.py; ends with its test."""

    def __init__(self, store: Path, port: int, max_sessions: int) -> None:
        program = [sys.executable, "-m", "tests.sandbox.protocol_server"]
        self.process = subprocess.Popen(
            [*program, str(store), str(port), str(max_sessions)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())
        self.port = int(self.url.rpartition(":")[2])

    async def counts(self) -> dict[str, int]:
        async with httpx.AsyncClient() as http:
            counts: dict[str, int] = (await http.get(f"{self.url}/counts")).json()
        return counts

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ProtocolServer]]:
    """Starts servers that share a store."""
    with contextlib.ExitStack() as stack:

        def start(port: int = 0, max_sessions: int = 100) -> ProtocolServer:
            server = ProtocolServer(tmp_path, port, max_sessions)
            stack.callback(server.kill)
            return server

        yield start


class TestFailover:
    @pytest_asyncio.fixture
    async def session(
        self, start: Callable[..., ProtocolServer]
    ) -> AsyncIterator[tuple[SandboxSession, ProtocolServer, ProtocolServer]]:
        """A session that has run one cell on the first of two servers with one store."""
        first, second = start(), start()
        async with SandboxClient([first.url, elsewhere(second.url)]) as client:
            session = await client.create_session()
            assert (await session.execute("", timeout=5)).result == "1 cells"
            assert session.server == first.url
            yield session, first, second
            await session.close()

    async def test_a_session_moves_when_its_server_is_gone(
        self,
        session: tuple[SandboxSession, ProtocolServer, ProtocolServer],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        moving, first, second = session
        name = moving.id
        first.kill()
        result = await moving.execute("", timeout=5)
        assert (result.outcome, result.result) == ("ok", "2 cells")
        assert result.lost_names == {"file": "an open file cannot be kept"}
        assert (moving.id, moving.server) == (name, elsewhere(second.url))
        assert f"circuit open for 0.5 s: the sandbox at {first.url} does not" in caplog.text
        assert f"session {name} moved from {first.url} to {moving.server}" in caplog.text
        settled = await moving.execute("", timeout=5)
        assert (settled.result, settled.lost_names) == ("3 cells", {})

    async def test_a_cell_that_was_cut_short_runs_elsewhere(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        moving, first, second = session
        result = await moving.execute(f"stop {first.port}", timeout=5)
        assert (result.outcome, result.result) == ("ok", "2 cells")
        assert moving.server == elsewhere(second.url)

    async def test_a_cell_that_has_run_does_not_run_twice(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        moving, first, _ = session
        result = await moving.execute(f"finish {first.port}", timeout=5)
        assert (result.outcome, result.error_name) == ("error", "SandboxFailover")
        assert "its output was lost" in result.stderr and "variables are there" in result.stderr
        assert (await moving.execute("", timeout=5)).result == "3 cells"

    async def test_nor_does_it_when_only_the_connection_broke(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        staying, first, _ = session
        assert (await staying.execute("break", timeout=5)).error_name == "SandboxFailover"
        assert staying.server == first.url
        assert (await staying.execute("", timeout=5)).result == "3 cells"

    async def test_waiting_cells_follow_in_order(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        moving, first, _ = session
        codes = ["", f"stop {first.port}", "", ""]
        results = await asyncio.gather(*(moving.execute(code, timeout=5) for code in codes))
        assert [result.result for result in results] == [f"{n} cells" for n in (2, 3, 4, 5)]

    async def test_a_cell_that_was_given_up_does_not_hide_the_next(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer], tmp_path: Path
    ) -> None:
        moving, first, _ = session
        given_up = asyncio.create_task(moving.execute("", timeout=5))
        async with asyncio.timeout(10):
            while (tmp_path / moving.id).read_text() != "2":
                await asyncio.sleep(0)
        given_up.cancel()
        first.kill()
        assert (await moving.execute("", timeout=5)).result == "3 cells"

    async def test_a_session_that_nobody_kept_is_lost(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer], tmp_path: Path
    ) -> None:
        moving, first, second = session
        (tmp_path / moving.id).unlink()
        first.kill()
        assert (await moving.execute("", timeout=5)).outcome == "lost"
        second.kill()
        assert (await moving.execute("", timeout=5)).outcome == "lost"

    async def test_without_any_server_all_are_named(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        moving, first, second = session
        first.kill()
        second.kill()
        with pytest.raises(SandboxUnavailable) as failure:
            await moving.execute("", timeout=5)
        assert first.url in str(failure.value) and elsewhere(second.url) in str(failure.value)

    async def test_a_server_that_was_restarted_goes_on(
        self, start: Callable[..., ProtocolServer]
    ) -> None:
        server = start()
        async with SandboxClient(server.url) as client, await client.create_session() as session:
            await session.execute("", timeout=5)
            server.kill()
            with pytest.raises(SandboxUnavailable):
                await session.execute("", timeout=5)
            start(port=server.port)
            result = await session.execute("", timeout=5)
            assert result.result == "2 cells" and result.lost_names

    async def test_nothing_of_a_closed_session_is_kept(
        self,
        session: tuple[SandboxSession, ProtocolServer, ProtocolServer],
        tmp_path: Path,
    ) -> None:
        closing, first, _ = session
        assert list(tmp_path.iterdir()) == [tmp_path / closing.id]
        first.kill()
        await closing.close()
        assert not list(tmp_path.iterdir())
        assert (await closing.execute("", timeout=5)).outcome == "lost"

    async def test_a_refused_cell_does_not_count(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        staying, _, _ = session
        with pytest.raises(SandboxError, match="answered 422: the code is refused"):
            await staying.execute("refuse", timeout=5)
        result = await staying.execute("", timeout=5)
        assert (result.result, result.lost_names) == ("2 cells", {})

    async def test_an_evicted_session_is_restored(
        self, session: tuple[SandboxSession, ProtocolServer, ProtocolServer]
    ) -> None:
        staying, first, _ = session
        await staying.evict()
        await staying.evict()
        assert (await first.counts())["evictions"] == 2
        result = await staying.execute("", timeout=5)
        assert result.result == "2 cells" and result.lost_names


class TestImages:
    async def test_sixteen_sessions_send_one_upload_to_each_server(
        self, start: Callable[..., ProtocolServer]
    ) -> None:
        servers = start(), start()
        image = png(gradient(400, 300))
        async with SandboxClient([server.url for server in servers]) as client:
            await asyncio.gather(*(client.create_session([image, image]) for _ in range(16)))
        assert [(await server.counts())["uploads"] for server in servers] == [1, 1]

    async def test_a_large_image_is_hashed_once_and_not_in_the_event_loop(
        self, nobody: str
    ) -> None:
        image = bytes(48 << 20)
        started = time.thread_time()
        hashlib.sha256(image)
        once = time.thread_time() - started
        async with SandboxClient(nobody) as client:
            await asyncio.gather(client.create_session(), return_exceptions=True)
            here, everywhere = time.thread_time(), time.process_time()
            creations = (client.create_session([image]) for _ in range(16))
            failures = await asyncio.gather(*creations, return_exceptions=True)
            here, everywhere = time.thread_time() - here, time.process_time() - everywhere
        assert all(isinstance(failure, SandboxUnavailable) for failure in failures)
        assert here < once and everywhere < 4 * once
