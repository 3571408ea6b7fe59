"""``deepeyes sandbox up``, ``status`` and ``down``: the code sandbox on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deepeyes_plugins.cli.console import Console, echo, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import LARGEST_PORT, redis_url
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.extras import install_command
from deepeyes_plugins.sandbox.contracts import SandboxError
from deepeyes_plugins.settings import load_settings

if TYPE_CHECKING:
    from deepeyes_plugins.hosts.ray.sandbox import NodeServer

_NODE_CHARACTERS = 8

Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray head node; by default $RAY_ADDRESS, else the cluster of this machine.",
        show_default=False,
    ),
]


def up(
    ray: Annotated[
        bool, typer.Option("--ray", help="Deploy to the nodes of a Ray cluster.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="agent.yaml whose `sandbox` section sets the limits."),
    ] = None,
    address: Address = None,
    num_cpus: Annotated[
        float,
        typer.Option(metavar="N", min=0, help="Ray CPUs that each server reserves on its node."),
    ] = 0,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=LARGEST_PORT,
            help="Port on every node; 0: a fixed port per node between 20000 and 29999.",
        ),
    ] = 0,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, hidden=True)] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            callback=redis_url,
            help="Redis for sessions, as redis://host:6379/0, reachable from all nodes: sessions "
            "then survive the loss of their node.",
        ),
    ] = None,
) -> None:
    """Run a sandbox server on every node of a Ray cluster, until `deepeyes sandbox down`.

    Agent loops on the cluster discover the servers, unless a URL is configured. Run the command
    again for nodes that joined later; existing servers are not changed. The servers require a
    bearer token, which agent loops get from Ray; set DEEPEYES_TOKEN_SANDBOX here to choose it.
    """
    if not ray:
        raise typer.BadParameter(
            "required: `deepeyes sandbox up --ray` runs a server on every node of a Ray cluster. "
            "To run one server on this machine, use `deepeyes sandbox serve`.",
            param_hint="--ray",
        )
    try:
        settings = load_settings(config).sandbox
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error
    if redis is not None:
        settings = settings.model_copy(update={"redis_url": redis})
    if workers is not None:
        from deepeyes_plugins.sandbox.serve import ignore_workers

        ignore_workers(workers)
    with _cluster(address) as deployment:
        servers = deployment.deploy(settings, num_cpus=num_cpus, port=port)
    table = _table("")
    for server in servers:
        action = "started" if server.is_new else "existing"
        detail = escape(server.detail)
        table.add_row(*_row(server), action if server.state == "alive" else "", detail)
    Console().print(table)
    failed = sum(server.state != "alive" for server in servers)
    if failed:
        complain(
            f"{failed} of {len(servers)} nodes have no working server; see the Ray logs of those "
            "nodes (worker-*.err) for details"
        )


def status(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the sandbox servers of a Ray cluster, and their health as seen from this machine."""
    with _cluster(address) as deployment:
        servers = deployment.status()
    if as_json:
        echo_json([_as_dict(server) for server in servers])
        return
    if not servers:
        typer.echo("No sandbox on this Ray cluster; run `deepeyes sandbox up --ray` to start it.")
        return
    table = _table("sessions", "isolation")
    for server in servers:
        health = server.health
        table.add_row(
            *_row(server),
            f"{health.sessions}/{health.max_sessions}" if health else "",
            ("complete" if health.isolated else "INCOMPLETE") if health else "",
            escape(server.detail),
        )
    Console().print(table)


def down(address: Address = None) -> None:
    """Stop the sandbox servers of a Ray cluster, with all their sessions."""
    with _cluster(address) as deployment:
        removed = deployment.remove()
    if not removed:
        typer.echo("No sandbox on this Ray cluster.")
    for server in removed:
        echo(f"stopped on {server.node_id[:_NODE_CHARACTERS]} ({server.address})")


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connect to the cluster, and report errors of the sandbox as those of the command."""
    try:
        from deepeyes_plugins.hosts.ray import sandbox as deployment
    except ModuleNotFoundError as error:
        complain(f"{error}; on the machines of a Ray cluster: {install_command('rl')}")
    try:
        with deployment.cluster(address):
            yield deployment
    except SandboxError as error:
        complain(str(error))


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("node", "address", "URL", "state", *columns, "detail"):
        table.add_column(name, overflow="fold")
    return table


def _row(server: NodeServer) -> Sequence[str]:
    colour = "green" if server.state == "alive" else "red"
    state = f"[{colour}]{server.state}[/]"
    return server.node_id[:_NODE_CHARACTERS], server.address, escape(server.url or ""), state


def _as_dict(server: NodeServer) -> dict[str, Any]:
    """Return all fields except the token."""
    return {
        "node_id": server.node_id,
        "address": server.address,
        "url": server.url,
        "state": server.state,
        "detail": server.detail,
        "health": asdict(server.health) if server.health else None,
    }
