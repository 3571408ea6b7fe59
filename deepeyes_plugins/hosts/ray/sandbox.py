"""Deployment of the sandbox on a Ray cluster: one detached actor with a server per node.

The actors are the only record of a deployment: their names contain the node IDs, and they provide
the URL and token of their server to all processes of the cluster.
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

from deepeyes_plugins.hosts.ray.server_actor import Description, ServerActor
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
# Ray may have to start a worker process first.
_ACTOR_SECONDS = 60.0
# Ray's reasons of node deaths by `ray stop` or by the autoscaler.
_EXPECTED_DEATHS = (1, 4)

State = Literal["alive", "not answering", "no server", "node dead"]


@dataclass(frozen=True, slots=True)
class NodeServer:
    """Node of the cluster and its server.

    Attributes:
        node_id: Ray's ID of the node.
        address: IP address of the node.
        state: "alive"; "not answering" (the server does not respond from here, or its actor does
            not); "no server" (the node joined later, or its server could not start); "node dead".
        url: Base URL of the server, if it has one.
        token: Bearer token that clients must send.
        detail: Why there is no server, or which settings differ.
        health: The server's health, if it was requested.
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
        SandboxUnavailable: There is no cluster, or it cannot be reached from here.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _check_reachable(address)
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise SandboxUnavailable(
            f"no Ray cluster at {address!r} ({error}). Start one with `ray start --head`, or set "
            "the head node's host:port with --address or RAY_ADDRESS."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Reject an unreachable address at once, which Ray would retry for minutes, and "local"."""
    if address == "local":
        raise ValueError("this would start a new cluster")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def deploy(settings: SandboxSettings, *, num_cpus: float = 0, port: int = 0) -> list[NodeServer]:
    """Start a server on every live node that has none; existing servers are not changed.

    All servers share one bearer token: that of the existing servers, else the one in the
    environment variable that the settings name, else a new one. The password of Redis is copied to
    every node as well.

    Args:
        settings: Limits of the sessions.
        num_cpus: Ray CPUs that each server reserves on its node.
        port: Port on every node; 0: a port between 20000 and 29999 derived from the node's ID.

    Returns:
        One entry per live node; where the server could not start, the state is "no server" and the
        detail says why.

    Raises:
        SandboxUnavailable: Existing servers do not respond, or do not share a token.
    """
    existing = _actors()
    secret_variables = (settings.token_env, settings.redis_password_env)
    environment = {name: os.environ[name] for name in secret_variables if os.environ.get(name)}
    if existing:
        environment[settings.token_env] = _common_token(_ask(existing))
    environment.setdefault(settings.token_env, secrets.token_urlsafe(32))
    addresses = {
        node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]
    }
    actors = {node_id: existing.get(node_id) for node_id in addresses}
    for node_id in actors.keys() - existing.keys():
        actors[node_id] = (
            ray.remote(ServerActor)
            .options(
                name=f"{_PREFIX}{node_id}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=num_cpus,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(settings.model_dump(), environment, port=port)
        )
    answers = _ask(actors, settings.startup_timeout + _ACTOR_SECONDS)
    if any(not isinstance(answer, str) for answer in answers):
        _common_token(answers)  # Fails if another deployment ran concurrently.
    servers = []
    for (node_id, actor), answer in zip(actors.items(), answers, strict=True):
        server = _server(node_id, addresses[node_id], answer)
        if node_id not in existing:
            server = replace(server, is_new=True)
            if server.state != "alive":
                ray.kill(actor)
                server = replace(server, state="no server", url=None)
        elif not isinstance(answer, str) and answer["settings"] != settings.model_dump():
            detail = "runs with other settings; run `deepeyes sandbox down` first to change them"
            server = replace(server, detail=detail)
        servers.append(server)
    return servers


def remove() -> list[NodeServer]:
    """Stop all servers with their sessions, and the actors.

    Returns:
        The removed servers.

    Raises:
        SandboxError: Some did not stop; the message names them.
    """
    servers = status()
    actors = _actors()
    stops = [actor.stop.remote() for actor in actors.values()]
    if stops:
        # A server whose actor does not respond ends with the actor's process.
        ray.wait(stops, num_returns=len(stops), timeout=_STOP_SECONDS)
    for actor in actors.values():
        ray.kill(actor)
    removed = [server for server in servers if server.node_id in actors]
    deadline = time.monotonic() + _STOP_SECONDS
    while left := [
        *(f"the actor {_PREFIX}{node_id}" for node_id in _actors()),
        *(f"the server {server.url}" for server in removed if server.url and _listens(server.url)),
    ]:
        if time.monotonic() > deadline:
            raise SandboxError(f"did not stop in time: {', '.join(left)}")
        time.sleep(0.1)
    return removed


def status() -> list[NodeServer]:
    """Return the state of every node, and request the health of every server from here.

    Returns:
        One entry per node, also for nodes that died unexpectedly; empty if nothing is deployed.
    """
    actors = _actors()
    if not actors:
        return []
    answers = dict(zip(actors, _ask(actors), strict=True))
    servers = []
    for node in ray.nodes():
        node_id, address = node["NodeID"], node["NodeManagerAddress"]
        if node["Alive"]:
            servers.append(_server(node_id, address, answers.get(node_id)))
        elif node.get("DeathReason") not in _EXPECTED_DEATHS:
            detail = node.get("DeathReasonMessage") or ""
            servers.append(NodeServer(node_id, address, "node dead", detail=detail))
    return asyncio.run(_check_all(servers))


def discover(timeout: float = _ANSWER_SECONDS) -> list[NodeServer]:
    """Find the running servers from within a Ray task, actor or driver.

    Args:
        timeout: Seconds within which the servers' actors must respond.

    Returns:
        The running servers, that of this process's node first; empty if nothing is deployed.

    Raises:
        SandboxUnavailable: Servers are deployed, but none runs; the message says why.
    """
    actors = _actors()
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    servers = [
        _server(node_id, addresses.get(node_id, ""), answer)
        for node_id, answer in zip(actors, _ask(actors, timeout), strict=True)
    ]
    alive = [server for server in servers if server.state == "alive"]
    if servers and not alive:
        reasons = "; ".join(f"{server.address}: {server.detail}" for server in servers)
        raise SandboxUnavailable(f"no sandbox server of the Ray cluster runs: {reasons}")
    here = ray.get_runtime_context().get_node_id()
    return sorted(alive, key=lambda server: server.node_id != here)


def ensure_server(settings: SandboxSettings) -> str:
    """Return the URLs of the cluster's servers, else that of an embedded server.

    URLs in the settings or in $DEEPEYES_SANDBOX_URL take precedence. The URLs and the token are set
    in the environment, for clients and child processes. Blocks for some seconds, or until an
    embedded server has started: call it in a thread.

    Args:
        settings: URL of the sandbox, or how to start one.

    Returns:
        One URL, or several separated by commas.

    Raises:
        SandboxUnavailable: The cluster's servers do not run; or there is no URL, and no server
            could be started.
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


def _actors() -> dict[str, Any]:
    """Return the actors by node ID."""
    found = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == NAMESPACE:
            with contextlib.suppress(ValueError):  # It has just ended.
                actor = ray.get_actor(entry["name"], namespace=NAMESPACE)
                found[entry["name"].removeprefix(_PREFIX)] = actor
    return dict(sorted(found.items()))


def _ask(actors: Mapping[str, Any], timeout: float = _ANSWER_SECONDS) -> list[Description | str]:
    """Return each actor's description of its server, or why the actor does not respond."""
    pending = [actor.describe.remote() for actor in actors.values()]
    if pending:
        ray.wait(pending, num_returns=len(pending), timeout=timeout)
    answers: list[Description | str] = []
    for answer in pending:
        try:
            answers.append(ray.get(answer, timeout=0))
        except GetTimeoutError:
            answers.append(f"its actor has not answered within {timeout:g} s")
        except ActorUnavailableError:
            answers.append("its actor cannot be reached; the node may have died or be restarting")
        except RayError as error:
            # The last line is the error; those above are the traceback.
            answers.append(str(error).strip().splitlines()[-1].strip())
    return answers


def _common_token(answers: Sequence[Description | str]) -> str:
    tokens = {answer["token"] for answer in answers if not isinstance(answer, str)}
    if len(tokens) != 1:
        raise SandboxUnavailable(
            f"the servers on the cluster {'do not share a token' if tokens else 'do not answer'}; "
            "remove them first with `deepeyes sandbox down`"
        )
    return tokens.pop()


def _server(node_id: str, address: str, answer: Description | str | None) -> NodeServer:
    if answer is None:
        detail = "run `deepeyes sandbox up --ray` to start one"
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


async def _check_all(servers: Sequence[NodeServer]) -> list[NodeServer]:
    """Request the health of every server over HTTP."""

    async def check(server: NodeServer) -> NodeServer:
        if server.url is None:
            return server
        seconds = _ANSWER_SECONDS / 2
        try:
            async with SandboxClient(server.url, token=server.token, timeout=seconds) as client:
                return replace(server, health=await client.health())
        except SandboxError as error:
            detail = f"its actor reports that it runs, but from here {error}"
            return replace(server, state="not answering", health=None, detail=detail)

    return await asyncio.gather(*map(check, servers))
