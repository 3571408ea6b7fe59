"""HTTP handlers of the search service, which shares providers among all agents of a cluster.

| request | body | response |
| --- | --- | --- |
| ``POST /search`` | the fields of :class:`~deepeyes_plugins.search.contracts.SearchQuery` | those of ``SearchResults`` |
| ``POST /image_search`` | ``{"image": base64, "data_id": str, "count": int}`` | ``{"results": [{"title", "link", "thumbnail": base64 or null}], "partial": str, "kept": bool}`` |
| ``POST /retrieve`` | Search-R1's ``{"queries": [str], "topk": int, "return_scores": bool}`` | ``{"result": [[{"document": {"contents", …}, "score"}]]}`` |
| ``GET /health`` | | state of the providers and counts of queries |
| ``GET /metrics`` | | the same for Prometheus |

Errors are ``{"kind", "message", "variable", "retry_after"}`` with status 404 (not recorded), 422
(query refused) or 424 (the provider failed, retries included).
"""  # noqa: E501

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
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
from deepeyes_plugins.search.wire import IMAGE_QUERY, IMAGE_RESULTS, STATUSES, ErrorMessage
from deepeyes_plugins.serving.guard import Guard, Handler, authorised

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 << 20
_MAX_QUERIES = 1024
"""Queries in one request to ``/retrieve``."""

Message = TypeVar("Message")


class RetrieveMessage(BaseModel):
    """Request of Search-R1's retrieval contract."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    queries: tuple[Text, ...] = Field(max_length=_MAX_QUERIES)
    topk: int | None = Field(None, ge=1, le=MAXIMUM_RESULTS)
    return_scores: bool = False


class SearchServer:
    """HTTP handlers that answer from the providers of one :class:`Search`."""

    def __init__(self, search: Search, recording: Recording | None = None) -> None:
        """Create the providers.

        Args:
            search: Providers that answer.
            recording: File to which responses are written; recorded queries are answered from it.

        Raises:
            SearchNotConfiguredError: A provider is unknown, or an option of it is wrong.
        """
        self._search = search
        self._recording = recording
        self._text: TextSearchProvider = search.text
        self._images: ImageSearchProvider = search.images
        if recording is not None:
            self._text = Recorder(self._text, recording)
            self._images = ImageRecorder(self._images, recording)
        self._registry = CollectorRegistry()
        self._registry.register(_Counts(self._brokers))

    def app(self, token: str | None = None, host: str = "127.0.0.1") -> Starlette:
        """Return the ASGI application.

        Args:
            token: Bearer token that clients must send; ``None`` for none.
            host: Name or address on which the service listens.
        """
        routes = [
            Route("/search", authorised(_answered(self.text)), methods=["POST"]),
            Route("/image_search", authorised(_answered(self.image)), methods=["POST"]),
            Route("/retrieve", authorised(_answered(self.retrieve)), methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        guard = Middleware(Guard, token, host)
        return Starlette(routes=routes, lifespan=self._lifespan, middleware=[guard])

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
        query = await _read(request, SearchQuery.model_validate_json)
        found = await self._text.search(query)
        return Response(found.model_dump_json(exclude_defaults=True), media_type="application/json")

    async def image(self, request: Request) -> Response:
        """Answer a search by image."""
        query = await _read(request, IMAGE_QUERY.validate_json)
        found = await self._images.search(query)
        body = IMAGE_RESULTS.dump_json(found, exclude_defaults=True)
        return Response(body, media_type="application/json")

    async def retrieve(self, request: Request) -> Response:
        """Answer as Search-R1's retrieval server does; one failed query fails the request."""
        message = await _read(request, RetrieveMessage.model_validate_json)
        queries = [self._search.query(text, message.topk) for text in message.queries]
        responses = await asyncio.gather(*map(self._text.search, queries))
        found = [
            [as_document(result, rank) for rank, result in enumerate(response.results)]
            for response in responses
        ]
        if message.return_scores:
            return JSONResponse({"result": found})
        return JSONResponse({"result": [[hit["document"] for hit in hits] for hits in found]})

    async def health(self, request: Request) -> Response:
        """Return the state of the providers and the counts of queries; strangers get neither."""
        if not request.state.may_look:
            return JSONResponse({"status": "ok"})
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "recording": str(self._recording.path) if self._recording is not None else None,
                "searches": {
                    kind: {
                        "counts": dict(broker.counts),
                        "providers": {
                            source.provider.name: source.unavailable_reason or "ok"
                            for source in broker.sources
                        },
                    }
                    for kind, broker in self._brokers().items()
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Return metrics in the format of Prometheus."""
        if not request.state.may_look:
            reason = "the metrics require a bearer token, or a client on this machine"
            return JSONResponse({"error": reason}, 401)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _brokers(self) -> dict[str, Broker]:  # type: ignore[type-arg]
        return {"text": self._search.text_broker, "image": self._search.image_broker}


def _answered(handler: Handler) -> Handler:
    """Wrap a handler: turn search errors into responses."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except SearchError as error:
            message = ErrorMessage.of(error)
        except ClientDisconnect:
            return Response(status_code=499)
        logger.info("%s: %s", message.kind, message.message)
        return JSONResponse(message.model_dump(), STATUSES[message.kind])

    return answered


async def _read(request: Request, parse: Callable[[bytes], Message]) -> Message:
    """Read the body of a request.

    Raises:
        QueryRefusedError: The body is invalid; key and reason are named.
    """
    try:
        return parse(await _body(request))
    except ValidationError as error:
        reasons = (
            f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}"
            for one in error.errors(include_input=False, include_context=False)
        )
        raise QueryRefusedError("; ".join(reasons)) from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        # Read to the end: clients read no response before they have sent the whole body.
        if len(body) <= _MAX_BODY_BYTES:
            body += chunk
    if len(body) > _MAX_BODY_BYTES:
        raise QueryRefusedError(f"a request has at most {_MAX_BODY_BYTES} bytes")
    return bytes(body)


class _Counts(Collector):
    """Collect the brokers' counts when Prometheus scrapes."""

    def __init__(self, brokers: Callable[[], dict[str, Broker]]) -> None:  # type: ignore[type-arg]
        self._brokers = brokers

    def collect(self) -> Iterator[Metric]:
        queries = CounterMetricFamily(
            "deepeyes_search_queries",
            "Queries by outcome: kept (cached), shared (coalesced), asked, refused, failed.",
            labels=["kind", "outcome"],
        )
        calls = CounterMetricFamily(
            "deepeyes_search_calls",
            "Requests to providers.",
            labels=["kind", "provider", "outcome"],
        )
        seconds = GaugeMetricFamily(
            "deepeyes_search_call_seconds",
            "Latency of recent requests to providers.",
            labels=["kind", "provider", "quantile"],
        )
        available = GaugeMetricFamily(
            "deepeyes_search_provider_available",
            "0 for a provider without key or quota, or with an open circuit breaker; else 1.",
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
                available.add_metric([kind, name], float(not source.unavailable_reason))
        yield from (queries, calls, seconds, available)
