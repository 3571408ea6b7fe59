"""Served model: a chat client that creates the policies of the data selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepeyes_plugins.hosts.openai.client import ChatClient
from deepeyes_plugins.hosts.openai.policy import OpenAIPolicy
from deepeyes_plugins.hosts.openai.probe import require_server
from deepeyes_plugins.protocol.dialect import Dialect

_OUTPUT = {
    *("temperature", "top_p", "max_tokens", "max_total_tokens", "max_pixels"),
    *("extra_body", "profile", "prefill", "send_stop"),
}


class ServedModel(ChatClient):
    """A model on one or several OpenAI-compatible servers."""

    @property
    def output_settings(self) -> Mapping[str, Any]:
        """Settings that affect the model's output, as JSON values."""
        return self.settings.model_dump(include=_OUTPUT, mode="json")

    async def check(self) -> None:
        """Probe every server.

        Raises:
            InfrastructureError: A server cannot play trajectories; the message says why and what to
                do.
        """
        await require_server(self.settings)

    def policy(self, dialect: Dialect, *, seed: int) -> OpenAIPolicy:
        """Create the policy of one trajectory."""
        return OpenAIPolicy(self, dialect, seed=seed)
