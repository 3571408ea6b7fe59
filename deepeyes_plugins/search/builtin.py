"""The search providers of this package, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.hookspecs import hookimpl
from deepeyes_plugins.search.contracts import ImageProviderFactory, TextProviderFactory


@hookimpl
def register_search_providers(register: Callable[[str, TextProviderFactory], None]) -> None:
    """Register the providers of text search."""


@hookimpl
def register_image_search_providers(register: Callable[[str, ImageProviderFactory], None]) -> None:
    """Register the providers of search by image."""
