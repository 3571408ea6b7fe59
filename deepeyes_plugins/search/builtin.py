"""Built-in search providers."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.plugins import hookimpl

_TEXT = {
    "local": "providers.local:Local",
    "serper": "providers.serper:Serper",
    "serpapi": "providers.serpapi:SerpApi",
    "brave": "providers.brave:Brave",
    "tavily": "providers.tavily:Tavily",
    "exa": "providers.exa:Exa",
    "google_cse": "providers.google_cse:GoogleCse",
    "searxng": "providers.searxng:Searxng",
    "retriever": "providers.retriever:Retriever",
    "http": "providers.template:Template",
    "replay": "recording:Replay",
}
_IMAGES = {
    "cache": "providers.image_cache:CachedImages",
    "serpapi_lens": "providers.web_images:SerpApiLens",
    "http": "providers.web_images:ImageTemplate",
    "replay": "recording:ImageReplay",
}


@hookimpl
def register_search_providers(register: Callable[[str, str], None]) -> None:
    """Register the built-in text providers."""
    for name, provider in _TEXT.items():
        register(name, f"deepeyes_plugins.search.{provider}")


@hookimpl
def register_image_search_providers(register: Callable[[str, str], None]) -> None:
    """Register the built-in image providers."""
    for name, provider in _IMAGES.items():
        register(name, f"deepeyes_plugins.search.{provider}")
