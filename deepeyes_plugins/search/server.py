"""The search service: one for all agents of a cluster, in front of any providers.

| request | body | answer |
| --- | --- | --- |
| ``POST /search`` | the fields of :class:`~deepeyes_plugins.search.contracts.SearchQuery` | those of ``SearchResults`` |
| ``POST /image_search`` | ``{"image": base64, "data_id": str, "count": int}`` | ``{"results": [{"title", "link", "thumbnail": base64 or null}], "partial": str, "kept": bool}`` |
| ``POST /retrieve`` | Search-R1's ``{"queries": [str], "topk": int, "return_scores": bool}`` | ``{"result": [[{"document": {"contents", …}, "score"}]]}`` |
| ``GET /health`` | | how it is, and what it has counted |
| ``GET /metrics`` | | the same for Prometheus |

Errors are ``{"kind", "message", "variable", "retry_after"}`` with status 404 (not recorded), 422
(the query is refused) or 424 (a provider failed; it has been asked again already).
"""  # noqa: E501

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deepeyes_plugins import __version__
from deepeyes_plugins.search.broker import Broker
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import (
    MAXIMUM_RESULTS,
    ImageSearchProvider,
    QueryRefusedError,
    SearchError,
    SearchQuery,
    Text,
    TextSearchProvider,
)
from deepeyes_plugins.search.providers.retriever import as_document
from deepeyes_plugins.search.recording import ImageRecorder, Recorder, Recording
from deepeyes_plugins.search.wire import (
    STATUSES,
    ErrorMessage,
    ImageQueryMessage,
    ImageResultsMessage,
)

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 << 20
_MAX_QUERIES = 1024
"""Queries of one request of the retriever contract."""

Asked = TypeVar("Asked", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


class RetrieveMessage(BaseModel):
    """A request of Search-R1's contract."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    queries: tuple[Text, ...] = Field(max_length=_MAX_QUERIES)
    topk: int | None = Field(None, ge=1, le=MAXIMUM_RESULTS)
    return_scores: bool = False


class SearchServer:
    """The HTTP handlers over the providers of one :class:`Search`."""

    def __init__(
        self, search: Search, token: str | None = None, recording: Recording | None = None
    ) -> None:
        """Serve ``search`` to those who know the token.

        Args:
            search: Whose providers answer.
            token: Bearer token that clients must send; ``None`` for none.
            recording: Where every answer is written, and taken from if it is there.

        Raises:
            SearchNotConfiguredError: A provider cannot be made.
        """
        self._search = search
        self._token = token
        self._recording = recording
        self._text: TextSearchProvider = search.text
        self._images: ImageSearchProvider = search.images
        if recording is not None:
            self._text = Recorder(self._text, recording)
            self._images = ImageRecorder(self._images, recording)
        self._registry = CollectorRegistry()
        self._registry.register(_Counts(self._brokers))

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/search", self._guarded(self.text), methods=["POST"]),
            Route("/image_search", self._guarded(self.image), methods=["POST"]),
            Route("/retrieve", self._guarded(self.retrieve), methods=["POST"]),
            Route("/health", self._guarded(self.health)),
            Route("/metrics", self.metrics),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._search.aclose()
            if self._recording is not None:
                self._recording.close()

    async def text(self, request: Request) -> Response:
        """Answer a text search."""
        query = await _read(request, SearchQuery)
        found = await self._text.search(query)
        return Response(found.model_dump_json(exclude_defaults=True), media_type="application/json")

    async def image(self, request: Request) -> Response:
        """Answer a search by image."""
        query = (await _read(request, ImageQueryMessage)).query()
        found = ImageResultsMessage.of(await self._images.search(query))
        return Response(found.model_dump_json(exclude_defaults=True), media_type="application/json")

    async def retrieve(self, request: Request) -> Response:
        """Answer as Search-R1's retrieval server does; all queries of a request or none."""
        asked = await _read(request, RetrieveMessage)
        queries = [self._search.query(text, asked.topk) for text in asked.queries]
        answers = await asyncio.gather(*map(self._text.search, queries))
        found = [
            [as_document(result, number) for number, result in enumerate(answer.results)]
            for answer in answers
        ]
        if asked.return_scores:
            return JSONResponse({"result": found})
        return JSONResponse({"result": [[hit["document"] for hit in hits] for hits in found]})

    async def health(self, request: Request) -> Response:
        """Tell how it is, and what was counted."""
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "recording": str(self._recording.path) if self._recording is not None else None,
                "searches": {
                    kind: {
                        "counts": dict(broker.counts),
                        "providers": {
                            source.provider.name: source.trouble or "ok"
                            for source in broker.sources
                        },
                    }
                    for kind, broker in self._brokers().items()
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _brokers(self) -> dict[str, Broker]:  # type: ignore[type-arg]
        return {"text": self._search.text_broker, "image": self._search.image_broker}

    def _guarded(self, handler: Handler) -> Handler:
        """Check the token and turn errors of the contract into answers."""
        expected = f"Bearer {self._token}".encode() if self._token else b""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1", "replace")
            if expected and not hmac.compare_digest(given, expected):
                return JSONResponse({"error": "this search service wants a bearer token"}, 401)
            try:
                return await handler(request)
            except SearchError as error:
                message = ErrorMessage.of(error)
            except ClientDisconnect:
                return Response(status_code=499)
            logger.info("%s: %s", message.kind, message.message)
            return JSONResponse(message.model_dump(), STATUSES[message.kind])

        return guarded


async def _read(request: Request, model: type[Asked]) -> Asked:
    """Read what is asked.

    Raises:
        QueryRefusedError: It is nothing of the kind.
    """
    try:
        return model.model_validate_json(await _body(request))
    except ValidationError as error:
        reasons = (
            f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}"
            for one in error.errors(include_input=False, include_context=False)
        )
        raise QueryRefusedError("; ".join(reasons)) from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        # Read to its end, since nobody takes an answer while still sending; but not kept.
        if len(body) <= _MAX_BODY_BYTES:
            body += chunk
    if len(body) > _MAX_BODY_BYTES:
        raise QueryRefusedError(f"a request has at most {_MAX_BODY_BYTES} bytes")
    return bytes(body)


class _Counts(Collector):
    """Reads the brokers' counts when Prometheus asks."""

    def __init__(self, brokers: Callable[[], dict[str, Broker]]) -> None:  # type: ignore[type-arg]
        self._brokers = brokers

    def collect(self) -> Iterator[Metric]:
        queries = CounterMetricFamily(
            "deepeyes_search_queries",
            "Queries by how they ended: kept, shared, asked, refused, failed.",
            labels=["kind", "outcome"],
        )
        calls = CounterMetricFamily(
            "deepeyes_search_calls",
            "Searches that providers were asked for.",
            labels=["kind", "provider", "outcome"],
        )
        seconds = GaugeMetricFamily(
            "deepeyes_search_call_seconds",
            "Time that the last calls took.",
            labels=["kind", "provider", "quantile"],
        )
        available = GaugeMetricFamily(
            "deepeyes_search_provider_available",
            "1, or 0 for a provider that is left alone: it has no key or quota, or keeps failing.",
            labels=["kind", "provider"],
        )
        for kind, broker in self._brokers().items():
            for outcome, number in broker.counts.items():
                queries.add_metric([kind, outcome], number)
            for source in broker.sources:
                name, counted = source.provider.name, source.calls.snapshot()
                for outcome in ("answered", "refused", "unavailable", "held_back"):
                    calls.add_metric([kind, name, outcome], getattr(counted, outcome))
                for quantile, value in (("0.5", counted.p50), ("0.95", counted.p95)):
                    seconds.add_metric([kind, name, quantile], value)
                available.add_metric([kind, name], float(not source.trouble))
        yield from (queries, calls, seconds, available)
