"""Hooks and registries of search providers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from deepeyes_plugins.plugins import Registry, collect, hookspec

if TYPE_CHECKING:
    from deepeyes_plugins.search.contracts import ImageProviderFactory, TextProviderFactory


@hookspec
def register_search_providers(register: Callable[[str, TextProviderFactory | str], None]) -> None:
    """Add text-search providers: ``factory(options)`` makes a ``TextSearchProvider``."""


@hookspec
def register_image_search_providers(
    register: Callable[[str, ImageProviderFactory | str], None],
) -> None:
    """Add image-search providers: ``factory(options)`` makes an ``ImageSearchProvider``."""


@cache
def search_providers() -> Registry[TextProviderFactory]:
    """Return the factories of text providers by name."""
    return collect("search provider", register_search_providers)


@cache
def image_search_providers() -> Registry[ImageProviderFactory]:
    """Return the factories of image providers by name."""
    return collect("image search provider", register_image_search_providers)
