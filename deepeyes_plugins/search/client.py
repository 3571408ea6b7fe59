"""Search client of agents: providers behind a broker, or a remote search service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deepeyes_plugins.plugins import Registry, UnknownNameError
from deepeyes_plugins.remote.errors import RemoteRefusedError, RemoteUnavailableError
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.search.broker import Broker, BrokeredProvider, SearchType, Source, identity
from deepeyes_plugins.search.cache import ResponseStore, make_store
from deepeyes_plugins.search.contracts import (
    FILTERS,
    ImageQuery,
    ImageResults,
    ImageSearchProvider,
    Provider,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.hooks import image_search_providers, search_providers
from deepeyes_plugins.search.pages import PageReader
from deepeyes_plugins.search.settings import Budget, Kind, SearchSettings
from deepeyes_plugins.search.wire import IMAGE_QUERY, IMAGE_RESULTS, ErrorMessage, normalized

_MAX_RESPONSE_MB = 64.0
"""Largest response of a service, enough for ten thumbnails."""

TEXT = SearchType[SearchQuery, SearchResults](
    kind="text",
    key=lambda query: query.model_dump_json(),
    dump=lambda response: response.model_dump_json(exclude_defaults=True).encode(),
    load=SearchResults.model_validate_json,
    as_cached=lambda response: response.model_copy(update={"kept": True}),
)

IMAGES = SearchType[ImageQuery, ImageResults](
    kind="image",
    key=lambda query: f"{query.image.sha256} {query.count} {query.data_id}",
    dump=lambda response: IMAGE_RESULTS.dump_json(response, exclude_defaults=True),
    load=IMAGE_RESULTS.validate_json,
    as_cached=lambda response: replace(response, kept=True),
    fall_back_if_empty=True,
)

T = TypeVar("T")


class Search:
    """Text and image search by the settings, shared by all trajectories of an event loop.

    Providers are created at their first use, and nothing is opened before the first search.
    """

    def __init__(self, settings: SearchSettings, store_file: Path | None = None) -> None:
        """Initialise without opening anything.

        Args:
            settings: Section ``search`` of agent.yaml.
            store_file: File of the response cache if the settings name none; by default memory.
        """
        self.settings = settings
        self._store_file = store_file
        self._providers: list[Provider] = []

    def query(self, text: str, count: int | None = None) -> SearchQuery:
        """Make a query from a model's text and the settings' filters."""
        settings = self.settings
        return SearchQuery(
            text=text,
            count=count or settings.count,
            language=settings.language,
            region=settings.region,
            sites=settings.sites,
            excluded_sites=settings.excluded_sites,
            since=settings.since,
            until=settings.until,
        )

    @cached_property
    def text(self) -> TextSearchProvider:
        """Provider of text search: the service, or a broker.

        Raises:
            SearchNotConfiguredError: A provider is unknown, or an option of it is wrong.
        """
        if self.settings.url is not None:
            return self._closed_later(TextService(self.settings))
        return self._closed_later(BrokeredText(self.text_broker, self.settings))

    @cached_property
    def images(self) -> ImageSearchProvider:
        """Provider of image search: the service, or a broker.

        Raises:
            SearchNotConfiguredError: A provider is unknown, or an option of it is wrong.
        """
        if self.settings.url is not None:
            return self._closed_later(ImageService(self.settings))
        return self._closed_later(BrokeredImages(self.image_broker))

    def preflight(self, kind: Kind) -> None:
        """Check that the providers' API keys and files are available; nothing is sent.

        With ``search.url`` nothing is checked here: the service checks its providers at its start.

        Raises:
            SearchNotConfiguredError: Something is missing; the message names it.
        """
        provider: Provider = self.text if kind == "text" else self.images
        provider.preflight()

    @cached_property
    def text_broker(self) -> Broker[SearchQuery, SearchResults]:
        """Broker of the text providers; unused if a service answers."""
        settings = self.settings
        names = (settings.provider, *settings.fallbacks)
        sources = self._sources(names, "providers", search_providers())
        return Broker(TEXT, sources, self._store, settings.cache, settings.run)

    @cached_property
    def image_broker(self) -> Broker[ImageQuery, ImageResults]:
        """Broker of the image providers; unused if a service answers."""
        settings = self.settings
        names = (settings.image_provider, *settings.image_fallbacks)
        sources = self._sources(names, "image_providers", image_search_providers())
        return Broker(IMAGES, sources, self._store, settings.cache, settings.run)

    @cached_property
    def pages(self) -> PageReader:
        """Reader of web pages."""
        return PageReader(self.settings.pages, self._store, self.settings.cache.ttl)

    async def aclose(self) -> None:
        """Close every connection and the response cache."""
        if "pages" in self.__dict__:
            await self.pages.aclose()
        providers, self._providers = self._providers, []
        for provider in providers:
            await provider.aclose()
        if "_store" in self.__dict__:
            await self._store.aclose()

    def _sources(
        self, names: Sequence[str], section: str, registry: Registry[Any]
    ) -> list[Source[Any, Any]]:
        """Create the named providers; check every provider name in the settings."""
        options: Mapping[str, Mapping[str, Any]] = getattr(self.settings, section)
        budgets = self.settings.budgets
        registered = {*search_providers(), *image_search_providers()}
        for key, name in (
            *((section, name) for name in (*names, *options)),
            *(("budgets", name) for name in budgets if name not in registered),
        ):
            try:
                registry[name]
            except UnknownNameError as error:
                raise SearchNotConfiguredError(f"search.{key}: {error}") from error
        sources = []
        for name in names:
            given = options.get(name, {})
            provider: BrokeredProvider[Any, Any] = registry[name](given)
            sources.append(
                Source(provider, identity(provider.name, given), budgets.get(name, Budget()))
            )
        return sources

    @cached_property
    def _store(self) -> ResponseStore:
        return make_store(self.settings.cache, self._store_file)

    def _closed_later(self, provider: AnyProvider) -> AnyProvider:
        """Close ``provider`` with the client."""
        self._providers.append(provider)
        return provider


AnyProvider = TypeVar("AnyProvider", bound=Provider)


class _Brokered:
    """Base of the text and image providers that ask a broker."""

    name = "broker"
    cacheable = False
    _broker: Broker[Any, Any]

    def preflight(self) -> None:
        """Check that the providers' API keys and files are available."""
        for source in self._broker.sources:
            source.provider.preflight()

    async def check(self) -> str:
        """Check all providers and return the state of each."""
        providers = [source.provider for source in self._broker.sources]
        return "; ".join([f"{one.name}: {await one.check()}" for one in providers])

    async def aclose(self) -> None:
        """Close the providers."""
        await self._broker.aclose()


class BrokeredText(_Brokered, TextSearchProvider):
    """Text search by a broker; supports the filters that all of its providers support."""

    def __init__(
        self, broker: Broker[SearchQuery, SearchResults], settings: SearchSettings
    ) -> None:
        """Check that the providers support the settings' filters.

        Raises:
            SearchNotConfiguredError: A provider lacks a filter.
        """
        self._broker = broker
        self._providers: list[Any] = [source.provider for source in broker.sources]
        self.filters = FILTERS.intersection(*(one.filters for one in self._providers))
        self._check_filters(Search(settings).query("anything"))

    async def search(self, query: SearchQuery) -> SearchResults:
        """Ask the broker."""
        self._check_filters(query)
        return await self._broker.search(normalized(query))

    def _check_filters(self, query: SearchQuery) -> None:
        for provider in self._providers:
            if missing := sorted(query.filters - provider.filters):
                supported = ", ".join(sorted(provider.filters)) or "none"
                raise SearchNotConfiguredError(
                    f"{provider.name} has no filter for {', '.join(missing)} (it has: "
                    f"{supported}); unset it in `search`, or choose another provider"
                )


class BrokeredImages(_Brokered, ImageSearchProvider):
    """Image search by a broker."""

    def __init__(self, broker: Broker[ImageQuery, ImageResults]) -> None:
        self._broker = broker

    async def search(self, query: ImageQuery) -> ImageResults:
        """Ask the broker."""
        return await self._broker.search(query)


class _Service:
    """Client of ``deepeyes search serve``."""

    name = "service"
    cacheable = False

    def __init__(self, settings: SearchSettings) -> None:
        if settings.url is None:
            raise SearchNotConfiguredError("search.url: not set")
        self._variable = settings.token_env
        remote_settings = RemoteSettings(
            timeout=settings.timeout,
            retries=2,
            retry_wait_maximum=5.0,
            max_response_mb=_MAX_RESPONSE_MB,
        )
        self._remote = RemoteService(settings.url, remote_settings, key_env=settings.token_env)

    async def check(self) -> str:
        """Return the response of ``/health``."""
        return await self._call("GET", "/health", lambda body: body.decode())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._remote.aclose()

    async def _call(
        self, method: str, path: str, load: Callable[[bytes], T], content: bytes | None = None
    ) -> T:
        def read(reply: Reply) -> T:
            if reply.status < 300:
                try:
                    return load(reply.body)
                except ValidationError as error:
                    raise reply.unreadable(f"not a search response ({error})") from error
            try:
                message = ErrorMessage.model_validate_json(reply.body)
            except ValidationError:
                raise self._remote.refusal(reply) from None
            raise message.error()

        try:
            return await self._remote.call(method, path, read, content=content)
        except RemoteRefusedError as error:
            hint = f" Is ${self._variable} the service's token?" if error.status == 401 else ""
            raise SearchNotConfiguredError(
                f"search.url: {error}{hint}", variable=self._variable if hint else ""
            ) from error
        except RemoteUnavailableError as error:
            raise SearchUnavailableError(f"the search service: {error}") from error


class TextService(_Service, TextSearchProvider):
    """Text search by a remote service."""

    filters = FILTERS

    async def search(self, query: SearchQuery) -> SearchResults:
        """Ask the service."""
        body = query.model_dump_json(exclude_defaults=True).encode()
        return await self._call("POST", "/search", SearchResults.model_validate_json, body)


class ImageService(_Service, ImageSearchProvider):
    """Image search by a remote service."""

    async def search(self, query: ImageQuery) -> ImageResults:
        """Ask the service."""
        body = IMAGE_QUERY.dump_json(query, exclude_defaults=True)
        return await self._call("POST", "/image_search", IMAGE_RESULTS.validate_json, body)
