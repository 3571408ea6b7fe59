"""A served model as one object: what plays questions for `selection`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from deepeyes_plugins.hosts.openai.client import ChatClient
from deepeyes_plugins.hosts.openai.policy import OpenAIPolicy
from deepeyes_plugins.hosts.openai.settings import OpenAISettings
from deepeyes_plugins.protocol.dialect import Dialect

_ANSWERS = {
    *("temperature", "top_p", "max_tokens", "max_total_tokens", "max_pixels"),
    *("extra_body", "profile", "prefill", "send_stop"),
}
"""Settings that change what the model says."""


class ServedModel:
    """The model behind one or several OpenAI-compatible servers."""

    def __init__(self, settings: OpenAISettings) -> None:
        """Hold ``settings``; no connection is opened yet."""
        self._settings = settings
        self._client = ChatClient(settings)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that change what the model says, as JSON values."""
        return self._settings.model_dump(include=_ANSWERS, mode="json")

    async def __aenter__(self) -> Self:
        """Return the model itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def check(self) -> None:
        """Ask every server for its models.

        Raises:
            InfrastructureError: One does not answer, refuses the key, or the model to ask for is
                not clear.
        """
        await self._client.check()

    async def name(self) -> str:
        """Return the name of the model, as the first server has it.

        Raises:
            InfrastructureError: The server does not answer, or its model is not clear.
        """
        return await self._client.model()

    def policy(self, dialect: Dialect, *, seed: int) -> OpenAIPolicy:
        """Make the policy of one trajectory."""
        return OpenAIPolicy(self._client, dialect, seed=seed)
