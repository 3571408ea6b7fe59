"""The search providers of this package, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deepeyes_plugins.hookspecs import hookimpl
from deepeyes_plugins.search.contracts import (
    ImageProviderFactory,
    ImageSearchProvider,
    TextProviderFactory,
    TextSearchProvider,
)
from deepeyes_plugins.search.providers.brave import Brave
from deepeyes_plugins.search.providers.exa import Exa
from deepeyes_plugins.search.providers.google_cse import GoogleCse
from deepeyes_plugins.search.providers.image_cache import CachedImages
from deepeyes_plugins.search.providers.local import Local
from deepeyes_plugins.search.providers.retriever import Retriever
from deepeyes_plugins.search.providers.searxng import Searxng
from deepeyes_plugins.search.providers.serpapi import SerpApi
from deepeyes_plugins.search.providers.serper import Serper
from deepeyes_plugins.search.providers.tavily import Tavily
from deepeyes_plugins.search.providers.template import Template
from deepeyes_plugins.search.providers.web_images import ImageTemplate, SerpApiLens
from deepeyes_plugins.search.recording import ImageReplay, Replay, ReplayOptions


def _replay(options: Mapping[str, Any]) -> TextSearchProvider:
    return Replay(ReplayOptions.recording("providers.replay", options))


def _image_replay(options: Mapping[str, Any]) -> ImageSearchProvider:
    return ImageReplay(ReplayOptions.recording("image_providers.replay", options))


@hookimpl
def register_search_providers(register: Callable[[str, TextProviderFactory], None]) -> None:
    """Register the providers of text search."""
    for provider in (
        Local,
        Serper,
        SerpApi,
        Brave,
        Tavily,
        Exa,
        GoogleCse,
        Searxng,
        Retriever,
        Template,
    ):
        register(provider.name, provider)
    register(Replay.name, _replay)


@hookimpl
def register_image_search_providers(register: Callable[[str, ImageProviderFactory], None]) -> None:
    """Register the providers of search by image."""
    for provider in (CachedImages, SerpApiLens, ImageTemplate):
        register(provider.name, provider)
    register(ImageReplay.name, _image_replay)
