"""One sandbox server per node of a Ray cluster, each kept by a detached actor on its node.

The actors are the only record of a deployment: their names say which nodes have a server, and they
tell its URL and token to whoever may use the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deepeyes_plugins.hosts.ray.server_actor import Description, Keeper
from deepeyes_plugins.sandbox.client import SandboxClient
from deepeyes_plugins.sandbox.contracts import Health, SandboxError, SandboxUnavailable
from deepeyes_plugins.sandbox.embedded import URL_VARIABLE
from deepeyes_plugins.sandbox.embedded import ensure_server as ensure_embedded_server
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

NAMESPACE = "deepeyes-sandbox"
"""The Ray namespace of the actors."""

_PREFIX = "node-"
_ANSWER_SECONDS = 10.0
_STOP_SECONDS = 30.0
# Ray may have to start a worker process before the server is started.
_ACTOR_SECONDS = 60.0
# Ray's numbers for the deaths of nodes that were told to go, by `ray stop` or the autoscaler.
_TOLD_TO_GO = (1, 4)

State = Literal["alive", "not answering", "no server", "node dead"]


@dataclass(frozen=True, slots=True)
class NodeServer:
    """A node of the cluster and its server.

    Attributes:
        node_id: Ray's name for the node.
        address: Its IP address.
        state: "alive"; "not answering" (no answer from here or from its actor); "no server" (the
            node joined later, or its server could not start); "node dead".
        url: Base URL of the server, if it has one.
        token: Bearer token that clients must send.
        detail: What a person should know: why there is no server, or what differs.
        health: What the server told, where it was asked.
        is_new: Whether this call has started it.
    """

    node_id: str
    address: str
    state: State
    url: str | None = None
    token: str = field(default="", repr=False)
    detail: str = ""
    health: Health | None = None
    is_new: bool = False


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator[None]:
    """Connect this process to a running Ray cluster.

    Args:
        address: ``host:port`` of the head node; by default $RAY_ADDRESS, else the cluster of which
            this machine is a node.

    Raises:
        SandboxUnavailable: There is none, or it cannot be used from here.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(address)
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise SandboxUnavailable(
            f"no Ray cluster at {address!r} ({error}). Start one with `ray start --head`, or name "
            "the head node's host:port by --address or in RAY_ADDRESS."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuse what Ray would try for minutes, or would not refuse."""
    if address == "local":
        raise ValueError("this would start a cluster of its own")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def deploy(
    settings: SandboxSettings, *, num_cpus: float = 0, port: int = 0, workers: int = 1
) -> list[NodeServer]:
    """Start a server on every live node that has none; the others keep theirs.

    All servers ask for one bearer token: that of the servers which are there already, else the one
    in the environment variable that the settings name, else a new one. The password of Redis goes
    with it to every node.

    Args:
        settings: Limits of the sessions.
        num_cpus: Ray CPUs that each server takes from its node.
        port: Port on every node; 0 takes one between 20000 and 29999 that belongs to the node.
        workers: Number of server processes on every node.

    Returns:
        One per live node; those that could not start are "no server" and say why.

    Raises:
        SandboxUnavailable: Servers of an earlier call do not answer, or do not share a token.
    """
    kept = _keepers()
    secret_variables = (settings.token_env, settings.redis_password_env)
    environment = {name: os.environ[name] for name in secret_variables if os.environ.get(name)}
    if kept:
        environment[settings.token_env] = _common_token(_ask(kept))
    environment.setdefault(settings.token_env, secrets.token_urlsafe(32))
    addresses = {
        node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]
    }
    keepers = {node_id: kept.get(node_id) for node_id in addresses}
    for node_id in keepers.keys() - kept.keys():
        keepers[node_id] = (
            ray.remote(Keeper)
            .options(
                name=f"{_PREFIX}{node_id}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=num_cpus,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(settings.model_dump(), environment, port=port, workers=workers)
        )
    answers = _ask(keepers, settings.startup_timeout + _ACTOR_SECONDS)
    if any(not isinstance(answer, str) for answer in answers):
        _common_token(answers)  # Somebody else may have deployed at the same time.
    servers = []
    for (node_id, keeper), answer in zip(keepers.items(), answers, strict=True):
        server = _server(node_id, addresses[node_id], answer)
        if node_id not in kept:
            server = replace(server, is_new=True)
            if server.state != "alive":
                ray.kill(keeper)
                server = replace(server, state="no server", url=None)
        elif not isinstance(answer, str) and answer["settings"] != settings.model_dump():
            detail = "keeps other settings: `deepeyes sandbox down` first, to change them"
            server = replace(server, detail=detail)
        servers.append(server)
    return servers


def remove() -> list[NodeServer]:
    """End all servers with their sessions, and the actors.

    Returns:
        What has been removed.

    Raises:
        SandboxError: Something is left; the message names it.
    """
    servers = status()
    keepers = _keepers()
    stops = [keeper.stop.remote() for keeper in keepers.values()]
    if stops:
        # A server whose actor does not listen ends with the actor's process.
        ray.wait(stops, num_returns=len(stops), timeout=_STOP_SECONDS)
    for keeper in keepers.values():
        ray.kill(keeper)
    removed = [server for server in servers if server.node_id in keepers]
    deadline = time.monotonic() + _STOP_SECONDS
    while left := [
        *(f"the actor {_PREFIX}{node_id}" for node_id in _keepers()),
        *(f"the server {server.url}" for server in removed if server.url and _listens(server.url)),
    ]:
        if time.monotonic() > deadline:
            raise SandboxError(f"not everything has ended: {', '.join(left)}")
        time.sleep(0.1)
    return removed


def status() -> list[NodeServer]:
    """Look at every node, and asks every server from here how it is.

    Returns:
        One per node, also for nodes that have died unexpectedly; empty if nothing is deployed.
    """
    keepers = _keepers()
    if not keepers:
        return []
    answers = dict(zip(keepers, _ask(keepers), strict=True))
    servers = []
    for node in ray.nodes():
        node_id, address = node["NodeID"], node["NodeManagerAddress"]
        if node["Alive"]:
            servers.append(_server(node_id, address, answers.get(node_id)))
        elif node.get("DeathReason") not in _TOLD_TO_GO:
            detail = node.get("DeathReasonMessage") or ""
            servers.append(NodeServer(node_id, address, "node dead", detail=detail))
    return asyncio.run(_visit(servers))


def discover(timeout: float = _ANSWER_SECONDS) -> list[NodeServer]:
    """Find the live servers from within a Ray task, actor or driver.

    Args:
        timeout: Seconds that the servers' actors have for an answer.

    Returns:
        Those that run, the one of this process's own node first; empty if nothing is deployed.

    Raises:
        SandboxUnavailable: Servers are deployed, but none runs; the message says why.
    """
    keepers = _keepers()
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    servers = [
        _server(node_id, addresses.get(node_id, ""), answer)
        for node_id, answer in zip(keepers, _ask(keepers, timeout), strict=True)
    ]
    living = [server for server in servers if server.state == "alive"]
    if servers and not living:
        reasons = "; ".join(f"{server.address}: {server.detail}" for server in servers)
        raise SandboxUnavailable(f"no sandbox server of the Ray cluster runs: {reasons}")
    here = ray.get_runtime_context().get_node_id()
    return sorted(living, key=lambda server: server.node_id != here)


def ensure_server(settings: SandboxSettings) -> str:
    """Return the URLs of the cluster's servers; without any, does what it does elsewhere.

    URLs in the settings or in $DEEPEYES_SANDBOX_URL come first. What is found is put into the
    environment (URLs and token), for child processes and for those who make the client. Blocks for
    some seconds at most, or while an embedded server starts: call it in a thread.

    Args:
        settings: Where the sandbox is, or how to start one.

    Returns:
        One URL, or several with commas between them.

    Raises:
        SandboxUnavailable: Those of the cluster do not run; or there is none, and none could be
            started.
    """
    if not settings.url and not os.environ.get(URL_VARIABLE) and ray.is_initialized():
        try:
            servers = discover()
        except RayError as error:
            raise SandboxUnavailable(f"the Ray cluster does not answer: {error}") from error
        if servers:
            os.environ[settings.token_env] = servers[0].token
            os.environ[URL_VARIABLE] = ",".join(server.url or "" for server in servers)
            logger.info("sandbox servers of the Ray cluster: %s", os.environ[URL_VARIABLE])
    return ensure_embedded_server(settings)


def _keepers() -> dict[str, Any]:
    """The actors by the ids of their nodes."""
    found = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == NAMESPACE:
            with contextlib.suppress(ValueError):  # It has ended just now.
                keeper = ray.get_actor(entry["name"], namespace=NAMESPACE)
                found[entry["name"].removeprefix(_PREFIX)] = keeper
    return dict(sorted(found.items()))


def _ask(keepers: Mapping[str, Any], timeout: float = _ANSWER_SECONDS) -> list[Description | str]:
    """What each actor tells, or the reason why it does not."""
    pending = [keeper.describe.remote() for keeper in keepers.values()]
    if pending:
        ray.wait(pending, num_returns=len(pending), timeout=timeout)
    answers: list[Description | str] = []
    for answer in pending:
        try:
            answers.append(ray.get(answer, timeout=0))
        except GetTimeoutError:
            answers.append(f"its actor has not answered within {timeout:g} s")
        except ActorUnavailableError:
            answers.append("its actor cannot be reached; has the node died, or does it restart?")
        except RayError as error:
            # The last line tells the reason; what stands above is where it happened.
            answers.append(str(error).strip().splitlines()[-1].strip())
    return answers


def _common_token(answers: Sequence[Description | str]) -> str:
    tokens = {answer["token"] for answer in answers if not isinstance(answer, str)}
    if len(tokens) != 1:
        raise SandboxUnavailable(
            f"the servers on the cluster {'do not share a token' if tokens else 'do not answer'}; "
            "remove them first: `deepeyes sandbox down`"
        )
    return tokens.pop()


def _server(node_id: str, address: str, answer: Description | str | None) -> NodeServer:
    if answer is None:
        detail = "`deepeyes sandbox up --ray` starts one"
        return NodeServer(node_id, address, "no server", detail=detail)
    if isinstance(answer, str):
        return NodeServer(node_id, address, "not answering", detail=answer)
    state: State = "alive" if answer["url"] else "not answering"
    return NodeServer(node_id, address, state, answer["url"], answer["token"], answer["failure"])


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with contextlib.suppress(OSError):
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
        return True
    return False


async def _visit(servers: Sequence[NodeServer]) -> list[NodeServer]:
    """Ask every server over HTTP how it is."""

    async def visit(server: NodeServer) -> NodeServer:
        if server.url is None:
            return server
        seconds = _ANSWER_SECONDS / 2
        try:
            async with SandboxClient(server.url, token=server.token, timeout=seconds) as client:
                return replace(server, health=await client.health())
        except SandboxError as error:
            detail = f"its actor says it runs, but from here {error}"
            return replace(server, state="not answering", health=None, detail=detail)

    return await asyncio.gather(*map(visit, servers))
