"""Code sandbox: runs untrusted, model-written Python in stateful Jupyter-style sessions.

``SandboxClient`` is the asynchronous client, ``BlockingSandboxClient`` the synchronous one.
``ensure_server`` finds or starts a server, and ``python -m deepeyes_plugins.sandbox`` runs one.
Names are imported lazily, so that importing this package stays cheap.
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

_MODULES = {
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
