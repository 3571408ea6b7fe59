"""Validation and normalisation of base URLs."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_http_url(url: str) -> bool:
    """Return whether ``url`` is an HTTP or HTTPS URL with a host."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def versioned(url: str) -> str:
    """Return a base URL without a trailing slash, ``/v1`` added where it has no path."""
    url = url.strip().rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"
