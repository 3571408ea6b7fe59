"""The code sandbox: runs untrusted, model-written Python in live Jupyter-style sessions.

``SandboxClient`` talks to servers, and ``BlockingSandboxClient`` does so without await; ``ensure_server``
finds or starts a server; ``python -m deepeyes_plugins.sandbox`` runs one. Names are imported on first
use, so that importing this package costs nothing in the processes that must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepeyes_plugins.sandbox.blocking import BlockingSandboxClient, BlockingSandboxSession
    from deepeyes_plugins.sandbox.client import SandboxClient, SandboxSession
    from deepeyes_plugins.sandbox.contracts import (
        ExecutionResult,
        Health,
        Outcome,
        SandboxError,
        SandboxUnavailable,
    )
    from deepeyes_plugins.sandbox.embedded import EmbeddedServer, ensure_server, start_server
    from deepeyes_plugins.sandbox.settings import SandboxSettings

_HOMES = {
    "BlockingSandboxClient": "blocking",
    "BlockingSandboxSession": "blocking",
    "SandboxClient": "client",
    "SandboxSession": "client",
    "ExecutionResult": "contracts",
    "Health": "contracts",
    "Outcome": "contracts",
    "SandboxError": "contracts",
    "SandboxUnavailable": "contracts",
    "EmbeddedServer": "embedded",
    "ensure_server": "embedded",
    "start_server": "embedded",
    "SandboxSettings": "settings",
}

__all__ = [
    "BlockingSandboxClient",
    "BlockingSandboxSession",
    "EmbeddedServer",
    "ExecutionResult",
    "Health",
    "Outcome",
    "SandboxClient",
    "SandboxError",
    "SandboxSession",
    "SandboxSettings",
    "SandboxUnavailable",
    "ensure_server",
    "start_server",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
