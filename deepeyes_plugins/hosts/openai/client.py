"""Chat completions over HTTP: pooled connections, retries, and errors that name the server."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
import tenacity

from deepeyes_plugins.hosts.openai.settings import OpenAISettings
from deepeyes_plugins.rollout.contracts import InfrastructureError

logger = logging.getLogger(__name__)

_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_REFUSED_STATUSES = frozenset({400, 413, 422})
_UNAUTHORISED_STATUSES = frozenset({401, 403})
_CONTEXT_LENGTH = re.compile(r"context.?length|model length", re.IGNORECASE)
_EXCERPT = 300

T = TypeVar("T")


class ContextLengthError(Exception):
    """The conversation, or what was asked for beyond it, does not fit the model's context."""


class _TransientError(Exception):
    """Worth another attempt; ``retry_after`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Completion:
    """What a server generated.

    Attributes:
        text: The assistant's text, reasoning that a server split off put back in front.
        finish_reason: ``stop`` or ``length``.
        tokens: Generated tokens; 0 where the server does not count.
        total_tokens: Tokens of the whole conversation; 0 where the server does not count.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    total_tokens: int


class ChatClient:
    """Asks one or several servers, for all conversations of one event loop.

    Use it as an async context manager, or call :meth:`aclose`.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        """Hold ``settings``; no connection is opened yet."""
        self.settings = settings
        key = settings.api_key()
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout, connect=settings.connect_timeout),
            limits=httpx.Limits(
                max_connections=settings.max_connections,
                max_keepalive_connections=settings.max_connections,
            ),
        )
        self._turn = itertools.count()
        self._models: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._backoff = tenacity.wait_exponential(
            settings.retry_wait, settings.retry_wait_maximum
        ) + tenacity.wait_random(0, settings.retry_wait)

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def next_server(self) -> str:
        """The server for a new conversation, in turn; it should stay there for the prefix cache."""
        servers = self.settings.servers
        return servers[next(self._turn) % len(servers)]

    async def check(self) -> None:
        """Ask every server for its models.

        Raises:
            InfrastructureError: One does not answer, refuses the key, or the model to ask for is
                not clear.
        """
        for server in self.settings.servers:
            if self.settings.model is None:
                await self.model(server)
            else:
                await self._send("GET", f"{server}/models", self._reachable)

    async def model(self, server: str) -> str:
        """The model to ask ``server`` for.

        Raises:
            InfrastructureError: The server lists none or several and the settings choose none.
        """
        if self.settings.model is not None:
            return self.settings.model
        async with self._lock:
            if server not in self._models:
                url = f"{server}/models"
                self._models[server] = await self._send("GET", url, self._only_model)
        return self._models[server]

    async def complete(
        self, server: str, messages: Iterable[bytes], fields: Mapping[str, Any]
    ) -> Completion:
        """Generate the next message of a conversation.

        Args:
            server: Base URL, from :meth:`next_server`.
            messages: The messages as JSON, each serialised once by its owner: a conversation
                with large images is sent again with every turn.
            fields: The other fields of the request.

        Raises:
            ContextLengthError: It does not fit; nothing was generated.
            InfrastructureError: The server cannot be reached or refuses for good.
        """
        head = json.dumps({"model": await self.model(server), **fields}).encode()
        body = b'%s, "messages": [%s]}' % (head[:-1], b", ".join(messages))
        return await self._send("POST", f"{server}/chat/completions", self._completion, body)

    async def _send(
        self,
        method: str,
        url: str,
        read: Callable[[httpx.Response], T],
        body: bytes | None = None,
    ) -> T:
        """Send until ``read`` can make something of the answer, at most ``retries`` times more."""
        attempts = self.settings.retries + 1
        try:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(attempts),
                wait=self._wait,
                retry=tenacity.retry_if_exception_type(_TransientError),
                reraise=True,
            ):
                with attempt:
                    return read(await self._send_once(method, url, body))
        except _TransientError as error:
            raise InfrastructureError(
                f"{method} {url} failed in {attempts} attempts, at last: {error}"
            ) from error
        raise AssertionError("unreachable: the loop returns or raises")

    async def _send_once(self, method: str, url: str, body: bytes | None) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            response = await self._http.request(method, url, content=body, headers=headers)
        except httpx.RequestError as error:
            raise _TransientError(repr(error)) from error
        status = response.status_code
        if status in _TRANSIENT_STATUSES or status >= 500:
            reason = f"HTTP {status}: {_excerpt(response)}"
            raise _TransientError(reason, _seconds(response.headers.get("Retry-After")))
        return response

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, _TransientError) else 0.0
        wait = min(max(self._backoff(state), asked), self.settings.retry_wait_maximum)
        logger.info("attempt %d: %s; again in %.1f s", state.attempt_number, error, wait)
        return wait

    def _reachable(self, response: httpx.Response) -> None:
        if response.status_code in _UNAUTHORISED_STATUSES:
            raise self._refusal(response)

    def _only_model(self, response: httpx.Response) -> str:
        if response.is_error:
            raise self._refusal(response)
        try:
            names = [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, LookupError, TypeError) as error:
            raise _TransientError(f"no list of models: {_excerpt(response)}") from error
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise InfrastructureError(
                f"GET {response.request.url} lists {len(names)} models ({listed}); say which one "
                "to use (setting 'model' or DEEPEYES_OPENAI_MODEL)"
            )
        return names[0]

    def _completion(self, response: httpx.Response) -> Completion:
        if response.status_code in _REFUSED_STATUSES and _CONTEXT_LENGTH.search(response.text):
            raise ContextLengthError(_excerpt(response))
        if response.is_error:
            raise self._refusal(response)
        try:
            return _parse_completion(response.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"no chat completion ({error!r}): {_excerpt(response)}"
            raise _TransientError(reason) from error

    def _refusal(self, response: httpx.Response) -> InfrastructureError:
        request = response.request
        hint = (
            f" The key is read from the variable {self.settings.api_key_env}."
            if response.status_code in _UNAUTHORISED_STATUSES
            else ""
        )
        return InfrastructureError(
            f"{request.method} {request.url}: HTTP {response.status_code}: "
            f"{_excerpt(response)}{hint}"
        )


def _parse_completion(payload: Any) -> Completion:
    choice = payload["choices"][0]
    message = choice["message"]
    text = message.get("content") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise TypeError("the content is not text")
    if choice.get("finish_reason") in ("abort", "error"):
        raise ValueError("the generation was aborted")
    if reasoning and "</think>" not in text:
        text = f"<think>{reasoning}</think>{text}"
    usage = payload.get("usage") or {}
    return Completion(
        text=text,
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        tokens=int(usage.get("completion_tokens") or 0),
        total_tokens=int(usage.get("total_tokens") or 0),
    )


def _seconds(value: str | None) -> float:
    try:
        return float(value or 0)
    except ValueError:  # an HTTP date: the usual backoff will do
        return 0.0


def _excerpt(response: httpx.Response) -> str:
    text = " ".join(response.text.split())
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"
