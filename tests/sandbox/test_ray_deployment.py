"""The sandbox on a Ray cluster of several nodes, all on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deepeyes_plugins.hosts.ray import sandbox as deployment
from deepeyes_plugins.hosts.ray.sandbox import NodeServer
from deepeyes_plugins.sandbox import (
    BlockingSandboxClient,
    SandboxClient,
    SandboxError,
    SandboxSession,
    SandboxSettings,
    SandboxUnavailable,
)

from .conftest import children, eventually, running

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two nodes, to which this process is connected."""
    # So that a killed node counts as dead after seconds.
    detector = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {**NODE, "include_dashboard": False, "_system_config": detector}
    with pytest.MonkeyPatch.context() as environment:
        for name in ("DEEPEYES_SANDBOX_URL", "DEEPEYES_TOKEN_SANDBOX", "RAY_ADDRESS"):
            environment.delenv(name, raising=False)
        started = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                started.add_node(**NODE)
            ray.init(started.address, log_to_driver=False)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxSettings]:
    """Those of servers that share a Redis, which wants a password."""
    socket = tmp_path_factory.mktemp("redis") / "redis.sock"
    command = [
        *("redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""),
        *("--dir", str(socket.parent), "--requirepass", "redis-secret"),
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as redis,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("DEEPEYES_REDIS_PASSWORD", "redis-secret")
        assert eventually(socket.exists)
        yield SandboxSettings(redis_url=f"unix://{socket}", spare_sessions=0)
        redis.terminate()


@pytest.fixture(scope="module")
def servers(cluster: Cluster, settings: SandboxSettings) -> Iterator[list[NodeServer]]:
    yield deployment.deploy(settings)
    deployment.remove()


def on_node(node_id: str) -> dict[str, Any]:
    """Options that pin a task or an actor."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, False)}


def keeper_pid(server: NodeServer) -> int:
    """Process id of the actor that keeps the server."""
    keeper = ray.get_actor(f"node-{server.node_id}", namespace=deployment.NAMESPACE)
    pid: int = ray.get(keeper.__ray_call__.remote(lambda _: os.getpid()))
    return pid


def server_pid(keeper: int) -> int:
    """Process id of the one child that an actor has."""
    threads = Path(f"/proc/{keeper}/task").iterdir()
    (server,) = " ".join((thread / "children").read_text() for thread in threads).split()
    return int(server)


def states() -> dict[str, str]:
    return {server.node_id: server.state for server in deployment.status()}


def client_of(*servers: NodeServer) -> SandboxClient:
    return SandboxClient([server.url or "" for server in servers], token=servers[0].token)


async def test_every_node_has_a_server_that_works(
    cluster: Cluster, servers: list[NodeServer]
) -> None:
    assert {server.node_id for server in servers} == {
        node.node_id for node in cluster.list_all_nodes()
    }
    assert len({server.url for server in servers}) == 3
    for server in servers:
        async with client_of(server) as client, await client.create_session() as session:
            assert (await session.execute("6 * 7", timeout=10)).result == "42"


async def test_servers_want_their_token_which_is_not_shown(servers: list[NodeServer]) -> None:
    assert len({server.token for server in servers}) == 1
    assert servers[0].token not in repr(servers)
    async with SandboxClient(servers[0].url or "", token="guessed") as client:
        with pytest.raises(SandboxError, match="401"):
            await client.create_session()


def test_discovery_names_the_server_of_the_own_node_first(servers: list[NodeServer]) -> None:
    for server in servers:
        found = ray.get(ray.remote(deployment.discover).options(**on_node(server.node_id)).remote())
        assert found[0].url == server.url
        assert {other.url for other in found} == {other.url for other in servers}


class AgentLoopWorker:
    """A process as verl starts it, with an event loop."""

    async def run_cell(self, settings_path: str | None) -> tuple[tuple[str, ...], str]:
        from deepeyes_plugins.hosts.verl.agent_loop import shared_resources

        client = await shared_resources(settings_path).sandbox()
        async with await client.create_session() as session:
            return client.urls, (await session.execute("6 * 7", timeout=10)).result


def test_an_agent_loop_uses_the_servers_of_the_cluster(servers: list[NodeServer]) -> None:
    worker = ray.remote(AgentLoopWorker).options(**on_node(servers[1].node_id)).remote()
    urls, result = ray.get(worker.run_cell.remote(None))
    ray.kill(worker)
    assert urls[0] == servers[1].url and len(urls) == 3
    assert result == "42"


def test_a_url_in_the_settings_comes_first(servers: list[NodeServer]) -> None:
    assert deployment.ensure_server(SandboxSettings(url="http://given:1")) == "http://given:1"


def test_up_again_with_other_settings_says_that_they_do_not_count(
    servers: list[NodeServer],
) -> None:
    again = deployment.deploy(SandboxSettings(max_sessions=5))
    assert [server.url for server in again] == [server.url for server in servers]
    assert all("other settings" in server.detail and not server.is_new for server in again)


def test_status_tells_of_a_server_that_cannot_be_reached(servers: list[NodeServer]) -> None:
    server = server_pid(keeper_pid(servers[0]))
    os.kill(server, signal.SIGSTOP)
    try:
        seen, *others = deployment.status()
    finally:
        os.kill(server, signal.SIGCONT)
    assert seen.state == "not answering" and "its actor reports that it runs" in seen.detail
    assert [other.state for other in others] == ["alive", "alive"]


def test_a_killed_server_comes_back_where_it_was(servers: list[NodeServer]) -> None:
    keeper = keeper_pid(servers[1])
    family = children(keeper)
    os.kill(server_pid(keeper), signal.SIGKILL)
    assert eventually(lambda: not any(map(running, family)))
    assert eventually(lambda: states()[servers[1].node_id] == "alive", 30)
    assert keeper_pid(servers[1]) == keeper
    assert [server.url for server in deployment.status()] == [server.url for server in servers]


async def test_a_killed_actor_comes_back_where_it_was(servers: list[NodeServer]) -> None:
    keeper = await asyncio.to_thread(keeper_pid, servers[1])
    family = children(keeper)
    os.kill(keeper, signal.SIGKILL)
    assert eventually(lambda: not any(map(running, family)))
    async with client_of(servers[1]) as client:
        deadline = time.monotonic() + 30
        while True:
            try:
                async with await client.create_session() as session:
                    assert (await session.execute("6 * 7", timeout=10)).result == "42"
                break
            except SandboxUnavailable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
    after = await asyncio.to_thread(deployment.status)
    assert [server.url for server in after] == [server.url for server in servers]


async def test_a_node_joins_and_is_killed_during_a_run(
    cluster: Cluster, servers: list[NodeServer], settings: SandboxSettings
) -> None:
    joined = cluster.add_node(**NODE)
    before = {server.node_id: server for server in await asyncio.to_thread(deployment.status)}
    assert before[joined.node_id].state == "no server"

    again = await asyncio.to_thread(deployment.deploy, settings)
    (new,) = [server for server in again if server.is_new]
    assert new.node_id == joined.node_id and new.token == servers[0].token
    assert {server.url for server in again} - {new.url} == {server.url for server in servers}
    family = children(await asyncio.to_thread(keeper_pid, new))
    assert family

    async with client_of(*again) as client:
        sessions = [await client.create_session() for _ in range(12)]
        assert {session.server for session in sessions} == set(client.urls)
        doomed = [session for session in sessions if session.server == new.url]
        resting = doomed.pop()
        assert (await resting.execute("n = 41", timeout=10)).outcome == "ok"
        await resting.evict()

        over = asyncio.Event()
        cells = {session.id: 0 for session in sessions if session is not resting}

        async def count(session: SandboxSession) -> str:
            await session.execute("n = 0", timeout=10)
            while not over.is_set():
                result = await session.execute("n += 1\nn", timeout=10)
                if result.outcome != "ok" or result.lost_names:
                    return "told what is lost"
                cells[session.id] += 1
                assert result.result == str(cells[session.id])
            return "counted on"

        living = [session for session in sessions if session.server != new.url]
        runs = {session: asyncio.create_task(count(session)) for session in [*living, *doomed]}
        while min(cells.values()) < 5:
            await asyncio.sleep(0.01)
        cluster.remove_node(joined, allow_graceful=False)
        assert await asyncio.to_thread(eventually, lambda: not any(map(running, family)))

        so_far = dict(cells)
        async with await client.create_session() as session:
            assert session.server != new.url
            assert (await session.execute("6 * 7", timeout=10)).result == "42"
        result = await resting.execute("n + 1", timeout=10)
        assert (result.result, resting.server == new.url) == ("42", False)
        while any(cells[session.id] < so_far[session.id] + 5 for session in living):
            assert not any(runs[session].done() for session in living)
            await asyncio.sleep(0.01)
        over.set()
        async with asyncio.timeout(20):
            assert {await runs[session] for session in living} == {"counted on"}
            assert {await runs[session] for session in doomed} <= {
                "counted on",
                "told what is lost",
            }
        for session in sessions:
            await session.close()

    expected = {server.node_id: "alive" for server in servers} | {new.node_id: "node dead"}
    assert await asyncio.to_thread(eventually, lambda: states() == expected, 20)


def deepeyes(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepeyes_plugins.cli", "sandbox", *arguments],
        env={**os.environ, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_down_leaves_nothing_and_the_command_line_brings_it_back(
    cluster: Cluster, servers: list[NodeServer]
) -> None:
    with BlockingSandboxClient(servers[0].url or "", token=servers[0].token) as client:
        client.create_session().execute("n = 1", timeout=10)
    keepers = [keeper_pid(server) for server in servers]
    family = {pid for keeper in keepers for pid in {keeper, *children(keeper)}}
    assert len(family) >= 10

    answer = deepeyes("down", "--address", cluster.address)
    assert answer.returncode == 0, answer.stderr
    assert all(server.node_id[:8] in answer.stdout for server in servers)
    assert not any(map(running, family))
    assert ray.util.list_named_actors(all_namespaces=True) == []
    assert deployment.status() == []

    answer = deepeyes("up", "--ray", "--address", cluster.address, DEEPEYES_TOKEN_SANDBOX="s3cret")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("started") == 3
    assert "s3cret" not in answer.stdout + answer.stderr
    assert {server.token for server in deployment.discover()} == {"s3cret"}

    answer = deepeyes("status", "--json", RAY_ADDRESS=cluster.address)
    found = [row for row in json.loads(answer.stdout) if row["state"] != "node dead"]
    assert [row["state"] for row in found] == ["alive"] * 3
    assert [row["health"]["sessions"] for row in found] == [0] * 3
    assert "s3cret" not in answer.stdout + answer.stderr
    table = deepeyes("status", "--address", cluster.address).stdout
    assert all(row["url"] in table for row in found)
    deployment.remove()


def test_a_server_that_cannot_start_says_why_and_leaves_no_actor(cluster: Cluster) -> None:
    failed = deployment.deploy(SandboxSettings(warm_modules=("no_such_module",), spare_sessions=0))
    assert [server.state for server in failed] == ["no server"] * 3
    assert all("no_such_module" in server.detail for server in failed)
    assert eventually(lambda: ray.util.list_named_actors(all_namespaces=True) == [])


def test_without_servers_on_the_cluster_a_process_starts_its_own(cluster: Cluster) -> None:
    @ray.remote(num_cpus=0)
    def run_cell() -> tuple[str, str]:
        url = deployment.ensure_server(SandboxSettings())
        with BlockingSandboxClient(url) as client, client.create_session() as session:
            return url, session.execute("6 * 7", timeout=10).result

    url, result = ray.get(run_cell.remote())
    assert url.startswith("http://127.0.0.1:") and result == "42"


def test_up_says_what_is_missing() -> None:
    answer = deepeyes("up")
    assert answer.returncode == 2
    assert "up --ray" in answer.stderr and "serve" in answer.stderr

    answer = deepeyes("up", "--ray", "--address", "127.0.0.1:1")
    assert answer.returncode == 1
    assert "no Ray cluster at '127.0.0.1:1'" in answer.stderr and "ray start" in answer.stderr
