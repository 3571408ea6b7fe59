"""Chat client: distributes conversations over several OpenAI-compatible servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from deepeyes_plugins.hosts.openai.settings import OpenAISettings
from deepeyes_plugins.remote.chat import ChatEndpoint, Completion
from deepeyes_plugins.remote.errors import RemoteError
from deepeyes_plugins.rollout.contracts import InfrastructureError


class ChatClient:
    """Client of one or several servers, shared by the conversations of one event loop.

    Use it as an async context manager, or call :meth:`aclose`.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        self.settings = settings
        self._endpoints = tuple(
            ChatEndpoint(
                url,
                settings,
                model=settings.model,
                key_env=settings.api_key_env,
                model_hint="setting 'model' or DEEPEYES_OPENAI_MODEL",
            )
            for url in settings.servers
        )
        self._turn = itertools.count()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            await endpoint.aclose()

    def next_server(self) -> ChatEndpoint:
        """Return the server for a new conversation, round-robin.

        A conversation should stay on its server for the prefix cache. Servers whose circuit is open
        are skipped unless all are open.
        """
        start = next(self._turn)
        in_turn = [
            self._endpoints[(start + offset) % len(self._endpoints)]
            for offset in range(len(self._endpoints))
        ]
        return next((server for server in in_turn if not server.circuit.wait), in_turn[0])

    async def model(self) -> str:
        """Return the first server's name of the model.

        Raises:
            InfrastructureError: The server does not respond, or its model is ambiguous.
        """
        with _as_infrastructure_error():
            return await self._endpoints[0].model()

    async def check(self) -> None:
        """Request the list of models from every server.

        Raises:
            InfrastructureError: A server does not respond or refuses the key, or the model is
                ambiguous.
        """
        with _as_infrastructure_error():
            for endpoint in self._endpoints:
                await (endpoint.model() if self.settings.model is None else endpoint.models())

    async def complete(
        self, server: ChatEndpoint, messages: Iterable[bytes], fields: Mapping[str, Any]
    ) -> Completion:
        """Generate the next message of a conversation.

        Args:
            server: The conversation's server, from :meth:`next_server`.
            messages: The messages as JSON.
            fields: The other fields of the request.

        Raises:
            ContextLengthError: The conversation does not fit the context; nothing was generated.
            InfrastructureError: The server cannot be reached, or rejects the request permanently.
        """
        with _as_infrastructure_error():
            return await server.complete(messages, fields)


@contextmanager
def _as_infrastructure_error() -> Iterator[None]:
    try:
        yield
    except RemoteError as error:
        raise InfrastructureError(str(error)) from error
