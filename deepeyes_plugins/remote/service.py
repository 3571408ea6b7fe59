"""One HTTP service, called by all of an event loop."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import io
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from aiolimiter import AsyncLimiter

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.errors import (
    CircuitOpenError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from deepeyes_plugins.remote.retry import attempts
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.statistics import CallStatistics

_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_UNAUTHORISED_STATUSES = frozenset({401, 403})
_EXCERPT_CHARACTERS = 300
_MIB = 1 << 20
_LONGEST_HEADER = 1 << 16
"""Bytes; content-security policies of real servers are longer than aiohttp's 8 KiB."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, read to its end.

    Attributes:
        source: Method and URL, for messages.
        status: The HTTP status.
        headers: The headers; names in any case.
        body: The decoded body.
    """

    source: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; what is not becomes replacement characters."""
        return self.body.decode("utf-8", "replace")

    @property
    def excerpt(self) -> str:
        """The beginning of the text on one line, for messages."""
        text = " ".join(self.text.split())
        return text if len(text) <= _EXCERPT_CHARACTERS else f"{text[:_EXCERPT_CHARACTERS]}…"

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            RemoteUnavailableError: It is none; proxies answer like that in passing trouble.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise self.unreadable(f"no JSON ({error})") from error

    def unreadable(self, reason: str) -> RemoteUnavailableError:
        """Make the error that says that this is not what was expected."""
        return RemoteUnavailableError(f"{reason}: {self.excerpt}", status=self.status)


class RemoteService:
    """Sends requests to one base URL, as the settings allow. Nothing is opened until the first.

    It belongs to one event loop; :meth:`aclose` ends it, as ``contextlib.aclosing`` does.

    Attributes:
        url: The base URL, without a trailing slash.
        circuit: Whether the service is worth asking at the moment.
        statistics: What happened so far.
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
        """Hold the settings.

        Args:
            url: Base URL.
            settings: Time limits, retries and the like.
            key_env: Name of the environment variable with the key; nothing is sent where it is
                not set.
            key_header: Header that the key goes into; ``Authorization`` gets a bearer token.
            key_parameter: Parameter of the query that the key goes into instead, for services that
                take it nowhere else.
            headers: Further headers of every request.
        """
        self.url = url.rstrip("/")
        self.circuit = Circuit(settings.circuit_failures, settings.circuit_seconds)
        self.statistics = CallStatistics()
        self._settings = settings
        self._key_env = key_env
        self._headers, self._parameters = dict(headers or {}), dict[str, str]()
        if key_env and (key := os.environ.get(key_env, "").strip()):
            if key_parameter is not None:
                self._parameters[key_parameter] = key
            else:
                value = f"Bearer {key}" if key_header == "Authorization" else key
                self._headers[key_header] = value
        self._http: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(settings.concurrency)
        self._pace = _limiter(settings.rate) if settings.rate is not None else None

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
        """Send a request until it succeeds, at most ``retries`` times more.

        Args:
            method: ``GET``, ``POST``, …
            path: Behind the base URL, with its slash.
            read: Makes the result. It is called for statuses below 500 that are worth no retry;
                it raises :meth:`Reply.unreadable` for a body that another attempt may improve.
                For statuses of 400 and more, whatever it does, :meth:`refusal` is at hand.
            content: A body as it is, JSON if nobody says otherwise.
            content_type: Its kind.
            json: A body to be serialised; instead of ``content``.
            params: The query.
            retries: Instead of the settings' number.
            is_final: Tells of an answer whose status is usually worth a retry that it is not, for
                instance HTTP 429 of an account that is used up; it is refused then.
            patient: Wait while the service is left alone, instead of giving up.

        Raises:
            RemoteUnavailableError: Every attempt failed; the last reason is told.
            RemoteRefusedError: The service refuses for good; raised by ``read``.
        """
        settings = self._settings
        if retries is not None:
            settings = settings.model_copy(update={"retries": retries})
        body = _serialise(json) if json is not None else content
        headers = {"Content-Type": content_type} if body is not None else {}
        source = f"{method} {self.url}{path}"
        try:
            async for attempt in attempts(settings, final=() if patient else (CircuitOpenError,)):
                with attempt:
                    return await self._try(method, path, read, body, params, headers, is_final)
        except RemoteUnavailableError as error:
            number = attempt.retry_state.attempt_number
            tries = "" if number == 1 else f" in {number} attempts, at last"
            raise type(error)(
                f"{source} failed{tries}: {error}",
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
        """Send a request and take any answer below 300. Redirects are not followed.

        Raises:
            RemoteUnavailableError: Every attempt failed.
            RemoteRefusedError: The service refuses; its ``status`` tells why.
        """

        def read(reply: Reply) -> Reply:
            if reply.status >= 300:
                raise self.refusal(reply)
            return reply

        return await self.call(method, path, read, json=json, params=params)

    def refusal(self, reply: Reply) -> RemoteRefusedError:
        """Make the error for an answer that no retry improves."""
        hint = ""
        if self._key_env and reply.status in _UNAUTHORISED_STATUSES:
            hint = f" The key is read from the variable {self._key_env}."
        elif 300 <= reply.status < 400:
            place = reply.headers.get("Location", "nowhere")
            hint = f" It redirects to {place}; redirects are not followed: correct the URL."
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
                # Before it waits for its turn, which would cost others theirs, and after.
                self.circuit.expect_closed()
                await stack.enter_async_context(self._places)
                if self._pace is not None:
                    await self._pace.acquire()
                stack.enter_context(self.circuit.attempt())
            except CircuitOpenError:
                self.statistics.hold_back()
                raise
            started = time.monotonic()
            outcome = self.statistics.record
            try:
                reply = await self._send(method, path, body, params, headers)
                if reply.status in _TRANSIENT_STATUSES or reply.status >= 500:
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
            reason = " ".join(str(error).split())
            raise RemoteUnavailableError(f"{type(error).__name__}: {reason}") from error
        except TimeoutError as error:
            raise RemoteUnavailableError(
                f"ReadTimeout: no complete answer within {seconds:g} s"
            ) from error
        except ValueError as error:
            key = f" (is the key in {self._key_env} right?)" if self._key_env else ""
            raise RemoteRefusedError(f"{source} cannot be sent: {error}{key}") from error
        return Reply(source, response.status, response.headers, content)

    def _connections(self) -> aiohttp.ClientSession:
        """The connections, which belong to the event loop of the first request."""
        if self._http is None:
            self._http = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(
                    limit=0, ssl=_trusted() if self.url.startswith("https") else True
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=self._settings.connect_timeout),
                proxy=_proxy(self.url),
                max_line_size=_LONGEST_HEADER,
                max_field_size=_LONGEST_HEADER,
            )
        return self._http

    async def _read(self, source: str, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        limit = self._settings.max_response_mb
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > limit * _MIB:
                raise RemoteRefusedError(f"{source}: the answer is larger than {limit:g} MiB")
        return bytes(content)


def retry_after(value: str | None, now: datetime | None = None) -> float:
    """Return the seconds that a Retry-After header asks for; 0 if it cannot be read.

    Args:
        value: Seconds or an HTTP date.
        now: The time; by default the clock's.
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


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The system's certificates, and certifi's for containers that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _limiter(rate: float) -> AsyncLimiter:
    """A bucket of at least one request."""
    burst = max(1.0, rate)
    return AsyncLimiter(burst, burst / rate)


def _serialise(value: Any) -> bytes:
    return json.dumps(value).encode()
