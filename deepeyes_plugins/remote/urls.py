"""Validation, normalisation and display of base URLs."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from deepeyes_plugins.remote.redaction import is_secret


def is_http_url(url: str) -> bool:
    """Return whether ``url`` is an HTTP or HTTPS URL with a host."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def displayed(url: str) -> str:
    """Return a URL without user info and parameters, for messages about invalid URLs."""
    scheme, slashes, rest = url.partition("//")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}".partition("?")[0]


def refuse_credentials(url: str | None, instead: str) -> str | None:
    """Return a URL unchanged that contains no user name, password or key.

    Args:
        url: Value of a setting.
        instead: The setting that names the environment variable of the key or password.

    Raises:
        ValueError: The URL contains credentials; the message does not repeat them.
    """
    if url is not None and _has_credentials(url):
        raise ValueError(
            f"the URL of {displayed(url)} contains a user name, password or key, which messages "
            f"and process lists would show: remove it, and set the environment variable that "
            f"{instead} names"
        )
    return url


def _has_credentials(url: str) -> bool:
    parts = urlsplit(url)
    try:
        # An unescaped slash in a password ends what is parsed as the host.
        valid_host = parts.port is None or bool(parts.hostname)
    except ValueError:
        valid_host = False
    user_info, at, _ = parts.netloc.rpartition("@")
    is_redis_user = parts.scheme in ("redis", "rediss", "unix") and ":" not in user_info
    return (
        (bool(at) and not is_redis_user)
        or (not valid_host and "@" in url)
        or any(map(is_secret, parse_qs(parts.query)))
    )


def versioned(url: str) -> str:
    """Return a base URL without a trailing slash, ``/v1`` added where it has no path."""
    url = url.strip().rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"
