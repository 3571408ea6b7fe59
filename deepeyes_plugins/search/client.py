"""What agents search with: providers behind a broker, or a service that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deepeyes_plugins.plugins import Registry, UnknownNameError
from deepeyes_plugins.remote.errors import RemoteRefusedError, RemoteUnavailableError
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.search.broker import Asked, Broker, Form, Source, identity
from deepeyes_plugins.search.cache import AnswerStore, make_store
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
from deepeyes_plugins.search.wire import (
    ErrorMessage,
    ImageQueryMessage,
    ImageResultsMessage,
    tidy,
)

_SERVICE_MB = 64.0
"""Largest answer of a service: ten thumbnails fit."""

TEXT = Form[SearchQuery, SearchResults](
    kind="text",
    identify=lambda query: query.model_dump_json(),
    dump=lambda answer: answer.model_dump_json(exclude_defaults=True).encode(),
    load=SearchResults.model_validate_json,
    is_empty=lambda answer: not answer.results,
    is_partial=lambda answer: bool(answer.partial),
    as_kept=lambda answer: answer.model_copy(update={"kept": True}),
)

IMAGES = Form[ImageQuery, ImageResults](
    kind="image",
    identify=lambda query: f"{query.image.sha256} {query.count} {query.data_id}",
    dump=lambda answer: (
        ImageResultsMessage.of(answer).model_dump_json(exclude_defaults=True).encode()
    ),
    load=lambda data: ImageResultsMessage.model_validate_json(data).answer(),
    is_empty=lambda answer: not answer.results,
    is_partial=lambda answer: bool(answer.partial),
    as_kept=lambda answer: replace(answer, kept=True),
    past_empty=True,
)


class Search:
    """Text and image search as the settings have it, shared by all of an event loop.

    Nothing is opened before the first search; providers are made when they are first asked for.
    """

    def __init__(self, settings: SearchSettings, store_file: Path | None = None) -> None:
        """Hold the settings.

        Args:
            settings: Who answers, and how.
            store_file: Where answers are kept if the settings do not say; by default in memory.
        """
        self.settings = settings
        self._store_file = store_file
        self._made: list[Provider] = []

    def query(self, text: str, count: int | None = None) -> SearchQuery:
        """Make a query of what a model wrote and what the settings say."""
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
        """Who answers text searches.

        Raises:
            SearchNotConfiguredError: A provider is unknown, or an option of it is wrong.
        """
        if self.settings.url is not None:
            return self._made_one(TextService(self.settings))
        return self._made_one(BrokeredText(self.text_broker, self.settings))

    @cached_property
    def images(self) -> ImageSearchProvider:
        """Who answers searches by image.

        Raises:
            SearchNotConfiguredError: A provider is unknown, or an option of it is wrong.
        """
        if self.settings.url is not None:
            return self._made_one(ImageService(self.settings))
        return self._made_one(BrokeredImages(self.image_broker))

    def preflight(self, kind: Kind) -> None:
        """Look whether the providers have their keys and files; nothing is sent.

        A service looks after its own providers.

        Raises:
            SearchNotConfiguredError: One lacks something; the message names it.
        """
        provider: Provider = self.text if kind == "text" else self.images
        provider.preflight()

    @cached_property
    def text_broker(self) -> Broker[SearchQuery, SearchResults]:
        """The providers of text search, where they are not a service's."""
        settings = self.settings
        names = (settings.provider, *settings.fallbacks)
        sources = self._sources(names, "providers", search_providers())
        return Broker(TEXT, sources, self._store, settings.cache, settings.run)

    @cached_property
    def image_broker(self) -> Broker[ImageQuery, ImageResults]:
        """The providers of search by image, where they are not a service's."""
        settings = self.settings
        names = (settings.image_provider, *settings.image_fallbacks)
        sources = self._sources(names, "image_providers", image_search_providers())
        return Broker(IMAGES, sources, self._store, settings.cache, settings.run)

    @cached_property
    def pages(self) -> PageReader:
        """Who reads web pages."""
        return PageReader(self.settings.pages, self._store, self.settings.cache.ttl)

    async def aclose(self) -> None:
        """Close every connection and the kept answers."""
        if "pages" in self.__dict__:
            await self.pages.aclose()
        made, self._made = self._made, []
        for provider in made:
            await provider.aclose()
        if "_store" in self.__dict__:
            await self._store.aclose()

    def _sources(
        self, names: Sequence[str], section: str, registry: Registry[Any]
    ) -> list[Source[Any, Any]]:
        """Make the providers of those names; no other name in the settings is unknown either."""
        options: Mapping[str, Mapping[str, Any]] = getattr(self.settings, section)
        budgets = self.settings.budgets
        others = {*search_providers(), *image_search_providers()}
        for where, name in (
            *((section, name) for name in (*names, *options)),
            *(("budgets", name) for name in budgets if name not in others),
        ):
            try:
                registry[name]
            except UnknownNameError as error:
                raise SearchNotConfiguredError(f"search.{where}: {error}") from error
        sources = []
        for name in names:
            given = options.get(name, {})
            provider: Asked[Any, Any] = registry[name](given)
            sources.append(
                Source(provider, identity(provider.name, given), budgets.get(name, Budget()))
            )
        return sources

    @cached_property
    def _store(self) -> AnswerStore:
        return make_store(self.settings.cache, self._store_file)

    def _made_one(self, provider: AnyProvider) -> AnyProvider:
        self._made.append(provider)
        return provider


AnyProvider = TypeVar("AnyProvider", bound=Provider)
Query = TypeVar("Query")
Answer = TypeVar("Answer")


class _Brokered:
    """What text and images have in common where a broker is the provider."""

    name = "broker"
    cacheable = False
    _broker: Broker[Any, Any]

    def preflight(self) -> None:
        """Look whether the providers have what they need."""
        for source in self._broker.sources:
            source.provider.preflight()

    async def check(self) -> str:
        """Look at all providers; each is named with what was found."""
        providers = [source.provider for source in self._broker.sources]
        return "; ".join([f"{one.name}: {await one.check()}" for one in providers])

    async def aclose(self) -> None:
        """Close the providers."""
        await self._broker.aclose()


class BrokeredText(_Brokered, TextSearchProvider):
    """A broker as a provider; it honours the filters that all of its providers do."""

    def __init__(
        self, broker: Broker[SearchQuery, SearchResults], settings: SearchSettings
    ) -> None:
        """Check that the providers can do what the settings ask of all queries.

        Raises:
            SearchNotConfiguredError: One cannot.
        """
        self._broker = broker
        self._providers: list[Any] = [source.provider for source in broker.sources]
        self.filters = FILTERS.intersection(*(one.filters for one in self._providers))
        self._expect(Search(settings).query("anything"))

    async def search(self, query: SearchQuery) -> SearchResults:
        """Ask the broker."""
        self._expect(query)
        return await self._broker.search(tidy(query))

    def _expect(self, query: SearchQuery) -> None:
        for provider in self._providers:
            if missing := sorted(query.filters - provider.filters):
                able = ", ".join(sorted(provider.filters)) or "none"
                raise SearchNotConfiguredError(
                    f"{provider.name} has no filter for {', '.join(missing)} (it has: {able}); "
                    "unset it in `search`, or choose another provider"
                )


class BrokeredImages(_Brokered, ImageSearchProvider):
    """The same for searches by image."""

    def __init__(self, broker: Broker[ImageQuery, ImageResults]) -> None:
        """Answer from ``broker``, which is closed with this."""
        self._broker = broker

    async def search(self, query: ImageQuery) -> ImageResults:
        """Ask the broker."""
        return await self._broker.search(query)


class _Service:
    """The client's side of ``deepeyes search serve``."""

    name = "service"
    cacheable = False

    def __init__(self, settings: SearchSettings) -> None:
        """Hold the address; nothing is connected yet."""
        if settings.url is None:
            raise SearchNotConfiguredError("search.url: there is no service")
        self._variable = settings.token_env
        remote_settings = RemoteSettings(
            timeout=settings.timeout,
            retries=2,
            retry_wait_maximum=5.0,
            max_response_mb=_SERVICE_MB,
        )
        self._remote = RemoteService(settings.url, remote_settings, key_env=settings.token_env)

    async def check(self) -> str:
        """Ask the service how it is."""
        return await self._call("GET", "/health", lambda body: body.decode())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._remote.aclose()

    async def _call(self, method: str, path: str, load: Any, content: bytes | None = None) -> Any:
        def read(reply: Reply) -> Any:
            if reply.status < 300:
                try:
                    return load(reply.body)
                except ValidationError as error:
                    raise reply.unreadable(f"no answer of a search service ({error})") from error
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
    """Text search by a service."""

    filters = FILTERS

    async def search(self, query: SearchQuery) -> SearchResults:
        """Ask the service."""
        body = query.model_dump_json(exclude_defaults=True).encode()
        found: SearchResults = await self._call(
            "POST", "/search", SearchResults.model_validate_json, body
        )
        return found


class ImageService(_Service, ImageSearchProvider):
    """Search by image by a service."""

    async def search(self, query: ImageQuery) -> ImageResults:
        """Ask the service."""
        message = ImageQueryMessage(image=query.image, data_id=query.data_id, count=query.count)
        found: ImageResultsMessage = await self._call(
            "POST",
            "/image_search",
            ImageResultsMessage.model_validate_json,
            message.model_dump_json(exclude_defaults=True).encode(),
        )
        return found.answer()
