"""Eviction of sessions and restore from their snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from deepeyes_plugins.sandbox import (
    EmbeddedServer,
    ExecutionResult,
    SandboxClient,
    SandboxSession,
    SandboxSettings,
    SandboxUnavailable,
    start_server,
)
from deepeyes_plugins.sandbox.kernels import make_provider

from .conftest import children, eventually, gradient, png


@pytest_asyncio.fixture
async def http(server: EmbeddedServer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as opened:
        yield opened


class Rounds:
    """Puts the session away between any two cells."""

    def __init__(self, session: SandboxSession, http: httpx.AsyncClient) -> None:
        self._session = session
        self._http = http

    async def run(self, code: str) -> ExecutionResult:
        result = await self._session.execute(code, timeout=30)
        answer = await self._http.post(f"/v1/sessions/{self._session.id}/evict")
        assert answer.status_code == 204, answer.text
        return result


@pytest_asyncio.fixture
async def rounds(session: SandboxSession, http: httpx.AsyncClient) -> Rounds:
    return Rounds(session, http)


SURVIVES = {
    "values": ("x = {'a': [1, 2.5, None]}; y = '眼'", "x, y", "({'a': [1, 2.5, None]}, '眼')"),
    "shared objects": ("a = [1]; b = {'a': a}", "a.append(2); b", "{'a': [1, 2]}"),
    "functions see later changes": (
        "x = 1\ndef f(): return x + g()\ndef g(): return 10",
        "x = 5\ndef g(): return 100\nf()",
        "105",
    ),
    "classes and their objects": (
        "class Point:\n    count = 0\n    def __init__(self): Point.count += 1; self.n = count\n"
        "count = 7\npoint = Point()",
        "Point(); isinstance(point, Point), Point.count, point.n",
        "(True, 2, 7)",
    ),
    "closures and lambdas": (
        "def outer(n):\n    return lambda m: n * m\ntwice = outer(2)",
        "twice(21)",
        "42",
    ),
    "modules under other names": ("import numpy as np", "np.arange(3).sum()", "np.int64(3)"),
    "arrays and frames": (
        "import numpy as np, pandas as pd\na = np.eye(2)\nt = pd.DataFrame({'v': [1, 2]})",
        "a.tolist(), t.v.sum()",
        "([[1.0, 0.0], [0.0, 1.0]], np.int64(3))",
    ),
    "files, folders and the working folder": (
        "import os\nos.makedirs('d/e')\nopen('d/e/f.txt', 'w').write('kept')\nos.chdir('d')",
        "open('e/f.txt').read(), os.path.basename(os.getcwd())",
        "('kept', 'd')",
    ),
    "empty folders": ("import os\nos.makedirs('out/deep')", "os.listdir('out')", "['deep']"),
    "modules that the session wrote": (
        "open('own.py', 'w').write('def answer(): return 42')\nimport own",
        "own.answer()",
        "42",
    ),
    "settings of matplotlib": (
        "import matplotlib.pyplot as plt\nplt.rcParams['figure.dpi'] = 33",
        "plt.rcParams['figure.dpi']",
        "33.0",
    ),
    "a name of one's own that was deleted": ("x = 1\ndel x", "'x' in globals()", "False"),
}


@pytest.mark.parametrize(("before", "after", "result"), SURVIVES.values(), ids=SURVIVES.keys())
async def test_survives(rounds: Rounds, before: str, after: str, result: str) -> None:
    assert (await rounds.run(before)).outcome == "ok"
    there = await rounds.run(after)
    assert (there.outcome, there.result) == ("ok", result), there.stderr
    assert there.lost_names == {} and there.stderr == ""


async def test_random_numbers_go_on_where_they_were(
    client: SandboxClient, http: httpx.AsyncClient
) -> None:
    seed = "import random, numpy\nrandom.seed(3); numpy.random.seed(3)"
    draw = "random.random(), numpy.random.rand()"
    async with await client.create_session() as one, await client.create_session() as two:
        away = Rounds(two, http)
        for session in (one, away):
            run = session.run if isinstance(session, Rounds) else lambda c: one.execute(c, 30)
            await run(seed)
        first = [(await one.execute(draw, 30)).result for _ in range(3)]
        second = [(await away.run(draw)).result for _ in range(3)]
    assert first == second


async def test_what_cannot_be_saved_is_named_once(rounds: Rounds) -> None:
    await rounds.run(
        "import threading, sqlite3\n"
        "kept = [1]\n"
        "numbers = iter(n for n in range(9))\n"
        "lock = threading.Lock()\n"
        "log = open('log.txt', 'w')\n"
        "base = sqlite3.connect(':memory:')\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    there = await rounds.run("kept")
    assert there.result == "[1]"
    assert set(there.lost_names) == {"numbers", "lock", "log", "base", "(threads)"}
    assert "cannot pickle 'generator' object" in there.lost_names["numbers"]
    assert "Not restored: " in there.stderr and "numbers (" in there.stderr
    assert (await rounds.run("kept")).lost_names == {}


async def test_one_variable_that_does_not_come_back_takes_no_other_along(rounds: Rounds) -> None:
    await rounds.run(
        "shared = ['s']\n"
        "before = [shared]\n"
        "class Stubborn:\n    def __reduce__(self): return int, ('no number',)\n"
        "stubborn = [shared, Stubborn()]\n"
        "after = {'shared': shared}"
    )
    there = await rounds.run("before[0] is shared is after['shared'], 'stubborn' in globals()")
    assert there.result == "(True, False)"
    assert list(there.lost_names) == ["stubborn"]
    assert "invalid literal for int()" in there.lost_names["stubborn"]


async def test_the_images_of_the_question_are_not_copied(
    client: SandboxClient, http: httpx.AsyncClient
) -> None:
    image = gradient()
    async with await client.create_session([png(image), png(image.rotate(90))]) as session:
        rounds = Rounds(session, http)
        await rounds.run(
            "same = image_1\n"
            "from PIL import ImageDraw\n"
            "ImageDraw.Draw(image_2).rectangle((0, 0, 9, 9), 'red')\n"
            "crop = image_1.crop((0, 0, 8, 8))"
        )
        there = await rounds.run(
            "same is image_1, image_1.getpixel((5, 7)), image_2.getpixel((1, 1)), crop.size"
        )
        assert there.result == f"(True, {image.getpixel((5, 7))}, (255, 0, 0), (8, 8))"
        await rounds.run("del image_1, same")
        assert (await rounds.run("'image_1' in globals()")).result == "False"


async def test_what_is_too_large_is_named_and_the_rest_comes_back() -> None:
    settings = SandboxSettings(snapshot_mb=1)
    with start_server(settings) as server:
        async with (
            SandboxClient(server.url, token=server.token) as client,
            httpx.AsyncClient(
                base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}
            ) as http,
            await client.create_session() as session,
        ):
            rounds = Rounds(session, http)
            await rounds.run(
                "small = 1\nlarge = bytes(2 << 20)\nopen('large.bin', 'wb').write(large)"
            )
            there = await rounds.run("small")
    assert there.result == "1"
    assert there.lost_names == dict.fromkeys(["large", "file large.bin"], "too large to be saved")


async def test_a_pickle_that_hangs_ends_with_the_snapshot_only(
    client: SandboxClient, http: httpx.AsyncClient
) -> None:
    async with await client.create_session() as session:
        await session.execute(
            "import time\nclass Slow:\n    def __reduce__(self): time.sleep(60)\nslow = Slow()", 10
        )
        evicting = asyncio.ensure_future(http.post(f"/v1/sessions/{session.id}/evict"))
        await asyncio.wait({evicting}, timeout=0.3)
        cell = await session.execute("'still here'", timeout=10)
        assert cell.result == "'still here'" and cell.lost_names == {}
        assert (await evicting).status_code == 503


async def test_a_session_keeps_none_of_the_memory_that_its_snapshots_went_through() -> None:
    provider = make_provider(SandboxSettings(spare_sessions=0))
    try:
        await provider.start()
        kernel = await provider.open([])
        await kernel.execute(
            "import os\nkept = []\n"
            "class Thief:\n"
            "    def __reduce__(self):\n"
            "        for fd in range(3, 256):\n"
            "            try:\n"
            "                if 'memfd' in os.readlink(f'/proc/self/fd/{fd}'):\n"
            "                    kept.append(os.dup(fd)); break\n"
            "            except OSError: pass\n"
            "        return int, ()\n"
            "thief = Thief()",
            10,
        )
        await kernel.snapshot(1 << 20)
        sizes = await kernel.execute("[os.fstat(fd).st_size for fd in kept]", 10)
        assert sizes.result == "[0]"
        again = await kernel.execute("os.truncate(kept[0], 1 << 20)", 10)
        assert again.error_name == "PermissionError"
    finally:
        await provider.close()


async def test_more_sessions_than_processes() -> None:
    with start_server(SandboxSettings(max_sessions=3, spare_sessions=0)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            sessions = [await client.create_session() for _ in range(9)]
            for number, session in enumerate(sessions):
                await session.execute(f"x = {number}", timeout=30)
            for number, session in enumerate(sessions):
                assert (await session.execute("x", timeout=30)).result == str(number)
            health = await client.health()
            assert (health.sessions, health.stored) == (3, 6)
            # The zygote and one process a live session.
            assert eventually(lambda: len(children(server.pid)) == 4)
            results = await asyncio.gather(*(one.execute("x + 1", 60) for one in sessions))
            assert [result.result for result in results] == [str(n + 1) for n in range(9)]
            for session in sessions:
                await session.close()
            health = await client.health()
            assert (health.sessions, health.stored) == (0, 0)


async def test_a_session_that_runs_a_cell_is_never_evicted() -> None:
    with start_server(SandboxSettings(max_sessions=1, room_timeout=0.2)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            busy = await client.create_session()
            cell = asyncio.ensure_future(busy.execute("x = 1\nwhile True: pass", timeout=60))
            await asyncio.wait({cell}, timeout=0.3)
            with pytest.raises(SandboxUnavailable, match="all 1 sessions are busy"):
                await client.create_session()
            while not cell.done():
                await busy.interrupt()
                await asyncio.wait({cell}, timeout=0.05)
            async with await client.create_session() as other:
                assert (await other.execute("1", timeout=10)).result == "1"
            assert (await busy.execute("x", timeout=10)).result == "1"


async def test_a_session_that_is_closed_while_it_comes_back_leaves_no_process() -> None:
    with start_server(SandboxSettings(spare_sessions=0)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await client.create_session()
            await session.execute(
                "import time\nclass Slow:\n    def __reduce__(self): return time.sleep, (1,)\n"
                "slow = Slow()",
                10,
            )
            await session.evict()
            assert eventually(lambda: len(children(server.pid)) == 1)
            cell = asyncio.ensure_future(session.execute("1", timeout=10))
            await asyncio.wait({cell}, timeout=0.4)
            await session.close()
            assert (await cell).outcome == "lost"
            # But for the zygote.
            assert await asyncio.to_thread(eventually, lambda: len(children(server.pid)) == 1)


async def test_a_session_that_resists_and_a_busy_one_hold_nobody_up() -> None:
    with start_server(SandboxSettings(max_sessions=2, room_timeout=0.2)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            stubborn, busy = await client.create_session(), await client.create_session()
            await stubborn.execute(
                "import time\nclass Slow:\n    def __reduce__(self): time.sleep(60)\nslow = Slow()",
                10,
            )
            await busy.execute("1", 10)
            creating = asyncio.ensure_future(client.create_session())
            await asyncio.wait({creating}, timeout=0.3)
            # While it tries to put the first one away, the other one gets work.
            cell = asyncio.ensure_future(busy.execute("while True: pass", timeout=30))
            await asyncio.wait({cell}, timeout=0.2)
            assert (await stubborn.execute("1", 10)).result == "1"
            with pytest.raises(SandboxUnavailable, match="all 2 sessions are busy"):
                await asyncio.wait_for(creating, 5)
            await busy.close()
            await cell


async def test_snapshots_that_found_no_room_are_lost_by_name() -> None:
    settings = SandboxSettings(max_sessions=1, snapshot_store_mb=1)
    with start_server(settings) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            sessions = [await client.create_session() for _ in range(3)]
            for session in sessions:
                await session.execute("hoard = bytes(700_000)", timeout=30)
            outcomes = [await session.execute("len(hoard)", 30) for session in sessions]
    assert [one.outcome for one in outcomes].count("lost") == 1
    lost = next(one for one in outcomes if one.outcome == "lost")
    assert lost.lost_names == {"hoard": "its snapshot was dropped, or it died while it was saved"}


async def test_a_session_ends_with_its_longest_life() -> None:
    with start_server(SandboxSettings(max_lifetime=1.0)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await client.create_session()
            while (result := await session.execute("1", timeout=10)).outcome == "ok":
                await asyncio.sleep(0.05)
            assert result.outcome == "lost"


async def test_memory_of_the_machine_makes_room() -> None:
    # More than any machine has: whatever is idle has to go.
    with start_server(SandboxSettings(min_free_memory_mb=1 << 30)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            sessions = [await client.create_session() for _ in range(3)]
            await sessions[0].execute("x = 1", timeout=10)
            while (await client.health()).stored < 3:
                await asyncio.sleep(0.05)
            assert (await sessions[0].execute("x", timeout=10)).result == "1"


async def test_killed_and_lost_sessions_name_what_they_had(session: SandboxSession) -> None:
    await session.execute("x = 1; y = 2", timeout=10)
    killed = await session.execute("import os; os._exit(1)", timeout=10)
    assert killed.outcome == "killed"
    assert killed.lost_names == dict.fromkeys(["x", "y"], "its process has ended")
