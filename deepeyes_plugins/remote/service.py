"""HTTP client of one remote service, shared by all tasks of an event loop."""

from __future__ import annotations

import asyncio
import email.utils
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp
import tenacity
from aiolimiter import AsyncLimiter

from deepeyes_plugins.files import read_json
from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.errors import (
    OVERLOADED_STATUSES,
    CircuitOpenError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from deepeyes_plugins.remote.http import open_session, proxy_of, reason_of
from deepeyes_plugins.remote.redaction import (
    protect,
    protect_credentials,
    protect_url,
    redact_body,
)
from deepeyes_plugins.remote.retry import Backoff
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.statistics import CallStatistics

_UNAUTHORISED_STATUSES = frozenset({401, 403})
_EXCERPT_CHARACTERS = 300
_MIB = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP response.

    Attributes:
        source: Method and URL, for messages.
        status: The HTTP status.
        headers: The headers; names are case-insensitive.
        body: The decompressed body.
    """

    source: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body decoded as UTF-8, with replacement characters for invalid bytes."""
        return self.body.decode("utf-8", "replace")

    @property
    def excerpt(self) -> str:
        """The beginning of the text on one line, for messages."""
        text = " ".join(self.text.split())
        return text if len(text) <= _EXCERPT_CHARACTERS else f"{text[:_EXCERPT_CHARACTERS]}…"

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            RemoteUnavailableError: The body is not JSON, as in transient errors of proxies.
        """
        try:
            return read_json(self.body)
        except (ValueError, RecursionError) as error:
            raise self.unreadable(f"not JSON ({error})") from error

    def unreadable(self, reason: str) -> RemoteUnavailableError:
        """Return the error for a body in an unexpected format, which is retried."""
        return RemoteUnavailableError(f"{reason}: {self.excerpt}", status=self.status)


class RemoteService:
    """Client of one base URL with retries, a circuit breaker and limits.

    It belongs to one event loop and opens no connection before the first request. Close it by
    :meth:`aclose` or ``contextlib.aclosing``.

    Attributes:
        url: The base URL, without a trailing slash.
        circuit: The circuit breaker.
        statistics: Counts and latencies of requests.
    """

    def __init__(
        self,
        url: str,
        settings: RemoteSettings,
        *,
        key_env: str | None = None,
        key_header: str = "Authorization",
        key_parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Initialise without connecting.

        Args:
            url: Base URL.
            settings: Timeouts, retries and limits.
            key_env: Name of the environment variable of the API key; no key is sent if it is not
                set.
            key_header: Header of the key; ``Authorization`` gets a bearer token, unless the key
                begins with a scheme of its own, as ``Basic …``.
            key_parameter: Query parameter of the key, for services that accept no header.
            headers: Further headers of every request.
        """
        self.url = url.rstrip("/")
        protect_url(url)
        seconds = settings.circuit_seconds
        self.circuit = Circuit(settings.circuit_failures, Backoff(seconds, seconds))
        self.statistics = CallStatistics()
        self._settings = settings
        self._key_env = key_env
        self._headers, self._parameters = dict(headers or {}), dict[str, str]()
        if key_env and (key := os.environ.get(key_env, "").strip()):
            protect(key)
            if key_parameter is not None:
                self._parameters[key_parameter] = key
            else:
                bearer = key_header == "Authorization" and " " not in key
                self._headers[key_header] = f"Bearer {key}" if bearer else key
        protect_credentials(self._headers)
        self._http: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._rate_limiter = _limiter(settings.rate) if settings.rate is not None else None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def call(
        self,
        method: str,
        path: str,
        read: Callable[[Reply], T],
        *,
        content: bytes | None = None,
        content_type: str = "application/json",
        json: Any = None,
        params: Mapping[str, str] | None = None,
        retries: int | None = None,
        is_final: Callable[[Reply], bool] | None = None,
        patient: bool = True,
    ) -> T:
        """Send a request, with retries after transient failures.

        Args:
            method: ``GET``, ``POST``, …
            path: Path below the base URL, with its slash.
            read: Converts the response to the result. It is called unless the status is retried,
                and raises :meth:`Reply.unreadable` for a body that a retry may correct, or
                :meth:`refusal` for a refused request.
            content: Body as bytes.
            content_type: Content type of ``content``.
            json: Body to be serialised, instead of ``content``.
            params: Query parameters.
            retries: Number of retries, instead of the settings' number.
            is_final: Returns whether a response is a refusal although its status is usually
                retried, for instance HTTP 429 of an account that is used up.
            patient: Wait while the circuit breaker is open, instead of failing at once.

        Raises:
            RemoteUnavailableError: Every attempt failed; the message contains the last reason.
            RemoteRefusedError: The service refuses the request; raised by ``read``.
        """
        tries = 1 + (self._settings.retries if retries is None else retries)
        body = _serialise(json) if json is not None else content
        headers = {"Content-Type": content_type} if body is not None else {}
        source = f"{method} {self.url}{path}"
        try:
            async for attempt in self._settings.backoff.attempts(
                tenacity.stop_after_attempt(tries),
                lambda error: patient or not isinstance(error, CircuitOpenError),
            ):
                with attempt:
                    return await self._try(method, path, read, body, params, headers, is_final)
        except RemoteUnavailableError as error:
            number = attempt.retry_state.attempt_number
            count = "" if number == 1 else f" in {number} attempts, last error"
            raise type(error)(
                f"{source} failed{count}: {error}",
                status=error.status,
                retry_after=error.retry_after,
            ) from error
        raise AssertionError("unreachable: the loop returns or raises")

    async def fetch(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request and return a response with a status below 300, without redirects.

        Raises:
            RemoteUnavailableError: Every attempt failed.
            RemoteRefusedError: The service refuses the request.
        """

        def read(reply: Reply) -> Reply:
            if reply.status >= 300:
                raise self.refusal(reply)
            return reply

        return await self.call(method, path, read, json=json, params=params)

    def refusal(self, reply: Reply) -> RemoteRefusedError:
        """Return the error for a response that a retry does not change."""
        hint = ""
        if self._key_env and reply.status in _UNAUTHORISED_STATUSES:
            hint = f" The key is read from the variable {self._key_env}."
        elif 300 <= reply.status < 400:
            target = reply.headers.get("Location", "nowhere")
            hint = f" It redirects to {target}; redirects are not followed: correct the URL."
        return RemoteRefusedError(
            f"{reply.source}: HTTP {reply.status}: {reply.excerpt}{hint}",
            status=reply.status,
            text=reply.excerpt,
        )

    async def _try(
        self,
        method: str,
        path: str,
        read: Callable[[Reply], T],
        body: bytes | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        is_final: Callable[[Reply], bool] | None,
    ) -> T:
        async with AsyncExitStack() as stack:
            try:
                # Checked before waiting, so as to take no slot from other requests, and after.
                self.circuit.expect_closed()
                await stack.enter_async_context(self._slots)
                if self._rate_limiter is not None:
                    await self._rate_limiter.acquire()
                stack.enter_context(self.circuit.attempt())
            except CircuitOpenError:
                self.statistics.hold_back()
                raise
            started = time.monotonic()
            outcome = self.statistics.record
            try:
                reply = await self._send(method, path, body, params, headers)
                if reply.status in OVERLOADED_STATUSES or reply.status >= 500:
                    if is_final is not None and is_final(reply):
                        raise self.refusal(reply)
                    raise RemoteUnavailableError(
                        f"HTTP {reply.status}: {reply.excerpt}",
                        status=reply.status,
                        retry_after=retry_after(reply.headers.get("Retry-After")),
                    )
                result = read(reply)
            except RemoteUnavailableError:
                outcome("unavailable", time.monotonic() - started)
                raise
            except Exception:
                outcome("refused", time.monotonic() - started)
                raise
            outcome("answered", time.monotonic() - started)
            return result

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> Reply:
        source = f"{method} {self.url}{path}"
        seconds = self._settings.timeout
        try:
            async with (
                asyncio.timeout(seconds),
                self._connections().request(
                    method,
                    self.url + path,
                    data=None if body is None else io.BytesIO(body),
                    headers=headers,
                    params={**self._parameters, **(params or {})},
                    allow_redirects=False,
                ) as response,
            ):
                content = await self._read(source, response)
        except aiohttp.ClientError as error:
            raise RemoteUnavailableError(reason_of(error)) from None
        except TimeoutError:
            raise RemoteUnavailableError(
                f"ReadTimeout: no complete response within {seconds:g} s"
            ) from None
        except ValueError as error:
            key = f" (is the key in {self._key_env} right?)" if self._key_env else ""
            raise RemoteRefusedError(f"{source} cannot be sent: {error}{key}") from None
        return Reply(source, response.status, response.headers, redact_body(content))

    def _connections(self) -> aiohttp.ClientSession:
        """Return the session, created by the first request, to whose event loop it belongs."""
        if self._http is None:
            self._http = open_session(
                tls=self.url.startswith("https"),
                headers=self._headers,
                connect_timeout=self._settings.connect_timeout,
                proxy=proxy_of(self.url),
            )
        return self._http

    async def _read(self, source: str, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        limit = self._settings.max_response_mb
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > limit * _MIB:
                raise RemoteRefusedError(f"{source}: the response is larger than {limit:g} MiB")
        return bytes(content)


def retry_after(value: str | None, now: datetime | None = None) -> float:
    """Return the seconds in a Retry-After header; 0 if it is invalid.

    Args:
        value: Seconds or an HTTP date.
        now: Current time; by default the system's.
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - (now or datetime.now(UTC))).total_seconds()
    return seconds if 0 < seconds < float("inf") else 0.0


def _limiter(rate: float) -> AsyncLimiter:
    """Return a leaky bucket of at least one request."""
    burst = max(1.0, rate)
    return AsyncLimiter(burst, burst / rate)


def _serialise(value: Any) -> bytes:
    return json.dumps(value).encode()
