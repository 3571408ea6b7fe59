"""Resources shared by the tools of one event loop: settings and lazily opened connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from deepeyes_plugins.rollout.contracts import Environment, Tool
from deepeyes_plugins.sandbox.client import SandboxClient
from deepeyes_plugins.sandbox.embedded import ensure_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.gate import Gate


class Resources:
    """Shared by all trajectories of one event loop; close it when the loop ends.

    Attributes:
        settings: Settings of the tools.
        sandbox_gate: Circuit breaker and retries for the sandbox.
    """

    def __init__(
        self,
        settings: AgentSettings,
        find_sandbox: Callable[[SandboxSettings], str] = ensure_server,
    ) -> None:
        """Prepare the resources; connections are opened on first use.

        Args:
            settings: Settings of the tools.
            find_sandbox: Returns the URL of the sandbox, or several separated by commas; may start
                one and set the token's environment variable. Called in a thread.
        """
        self.settings = settings
        self.search = Search(settings.search)
        self.sandbox_gate = Gate(
            "sandbox",
            failures=settings.sandbox.circuit_failures,
            seconds=settings.sandbox.circuit_seconds,
            patience=settings.sandbox.patience,
        )
        self._find_sandbox = find_sandbox
        self._sandboxes: dict[str, SandboxClient] = {}
        self._sandbox: SandboxClient | None = None
        self._lock = asyncio.Lock()

    async def sandbox(self) -> SandboxClient:
        """Return the sandbox client; find or start a server if the settings name none.

        While the circuit is open, the server is looked up again: it may have been restarted
        elsewhere.

        Raises:
            SandboxUnavailable: No server can be started.
        """
        async with self._lock:
            if self._sandbox is None or self.sandbox_gate.circuit.is_open:
                settings = self.settings.sandbox
                url = await asyncio.to_thread(self._find_sandbox, settings)
                if url not in self._sandboxes:
                    token = os.environ.get(settings.token_env)
                    self._sandboxes[url] = SandboxClient(url, token=token)
                # Earlier clients stay open for sessions on servers that still work.
                self._sandbox = self._sandboxes[url]
            return self._sandbox

    async def aclose(self) -> None:
        """Close every connection."""
        while self._sandboxes:
            _, client = self._sandboxes.popitem()
            await client.close()
        self._sandbox = None
        await self.search.aclose()


ToolFactory = Callable[[Resources], Tool]
EnvironmentFactory = Callable[[Resources], Environment]
