"""Served model: client, settings and policies of one model for the data selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from deepeyes_plugins.hosts.openai.client import ChatClient
from deepeyes_plugins.hosts.openai.policy import OpenAIPolicy
from deepeyes_plugins.hosts.openai.probe import require_server
from deepeyes_plugins.hosts.openai.settings import OpenAISettings
from deepeyes_plugins.protocol.dialect import Dialect

_ANSWERS = {
    *("temperature", "top_p", "max_tokens", "max_total_tokens", "max_pixels"),
    *("extra_body", "profile", "prefill", "send_stop"),
}
"""Settings that affect the model's output."""


class ServedModel:
    """A model on one or several OpenAI-compatible servers."""

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._client = ChatClient(settings)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that affect the model's output, as JSON values."""
        return self._settings.model_dump(include=_ANSWERS, mode="json")

    async def __aenter__(self) -> Self:
        """Return the model itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def check(self) -> None:
        """Probe every server.

        Raises:
            InfrastructureError: A server cannot play trajectories; the message says why and what to
                do.
        """
        await require_server(self._settings)

    async def name(self) -> str:
        """Return the first server's name of the model.

        Raises:
            InfrastructureError: The server does not respond, or its model is ambiguous.
        """
        return await self._client.model()

    def policy(self, dialect: Dialect, *, seed: int) -> OpenAIPolicy:
        """Create the policy of one trajectory."""
        return OpenAIPolicy(self._client, dialect, seed=seed)
