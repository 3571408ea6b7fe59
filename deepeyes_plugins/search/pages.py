"""Reader of web pages: fetching, extraction of the main text, caching."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from deepeyes_plugins.extras import install_command
from deepeyes_plugins.search.cache import ResponseStore
from deepeyes_plugins.search.contracts import SearchNotConfiguredError, Text
from deepeyes_plugins.search.fetching import Fetcher, FetchError, FetchRefusedError, FetchRules
from deepeyes_plugins.search.settings import PageSettings

BYTES_PER_TOKEN = 4
"""Estimated bytes of UTF-8 per token, for scripts of one byte a letter as well as of three, where a
character is about one token. Not measured with any tokenizer."""
_THREADS = 2
_MIB = 1 << 20
_KINDS = ("text/html", "application/xhtml+xml", "text/plain")


class Page(BaseModel):
    """Main text and metadata of a web page.

    Attributes:
        text: The main text, paragraphs separated by empty lines.
        title: Title; empty if there is none.
        link: URL.
        date: Date of publication that the page states.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text
    title: Text = ""
    link: Text = ""
    date: Text = ""


def main_text(data: bytes | str) -> Page | None:
    """Extract the main text of an HTML page, without menus, notices and scripts.

    Args:
        data: The page; bytes are decoded by the character set that the page declares.

    Returns:
        The page, or ``None`` if it has no text.
    """
    import trafilatura
    from trafilatura.settings import Document

    document = trafilatura.bare_extraction(data, with_metadata=True, include_comments=False)
    if not isinstance(document, Document) or not (document.text or "").strip():
        return None
    lines = (line.strip() for line in (document.text or "").splitlines())
    return Page(
        text="\n\n".join(filter(None, lines)),
        title=document.title or "",
        link=document.url or "",
        date=document.date or "",
    )


class PageReader:
    """Fetches pages and extracts their main text; belongs to one event loop."""

    def __init__(self, settings: PageSettings, store: ResponseStore, seconds: float) -> None:
        """Initialise without opening anything.

        Args:
            settings: Limits of pages.
            store: Cache of pages; it is not closed.
            seconds: Lifetime of a cached page.
        """
        self._settings = settings
        self._store = store
        self._seconds = seconds
        self._fetcher = Fetcher(
            FetchRules(
                content_types=_KINDS,
                most_bytes=int(settings.max_mb * _MIB),
                seconds=settings.timeout,
                ports=settings.ports,
                allowed=settings.allowed_networks,
            )
        )
        self._threads: ThreadPoolExecutor | None = None

    async def read(self, url: str) -> Page:
        """Return the page at ``url``, its text truncated as the settings say.

        Raises:
            FetchRefusedError: The page is not allowed, or has no text.
            FetchError: The page cannot be fetched.
            SearchNotConfiguredError: The library that extracts the text is missing.
        """
        key = "page:" + hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
        page = _load(await self._store.get(key))
        if page is None:
            page = await self._fetched(url)
            await self._store.put(key, page.model_dump_json().encode(), self._seconds)
        return page.model_copy(update={"text": truncated(page.text, self._settings.tokens)})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._fetcher.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _fetched(self, url: str) -> Page:
        found = await self._fetcher.fetch(url)
        # As in browsers, the server's character set overrides that of the page.
        decoded = _decoded(found.body, found.charset)
        if found.content_type == "text/plain":
            text = (decoded or found.body.decode("utf-8", "replace")).strip()
            page = Page(text=text) if text else None
        else:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="deepeyes-pages")
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, main_text, decoded or found.body
            )
            try:
                # A malicious page may occupy the thread longer; the trajectory does not wait.
                page = await asyncio.wait_for(work, self._settings.timeout)
            except TimeoutError as error:
                raise FetchError("the extraction of the text timed out") from error
            except ModuleNotFoundError as error:
                raise SearchNotConfiguredError(
                    f"read_page: {error}; {install_command('search')}"
                ) from error
        if page is None:
            raise FetchRefusedError("the page has no text")
        return page.model_copy(update={"link": found.url})


def truncated(text: str, tokens: int) -> str:
    """Truncate a text at the end of a paragraph or word, and append how much is missing.

    Args:
        text: Any text.
        tokens: Maximum length, estimated by :data:`BYTES_PER_TOKEN`, since the model's tokenizer
            is not available here.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= tokens * BYTES_PER_TOKEN:
        return text
    head = data[: tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
    end = max(head.rfind("\n\n"), head.rfind(" ", len(head) * 3 // 4))
    head = head[: end if end > len(head) // 2 else len(head)].rstrip()
    return f"{head}\n\n[{len(text) - len(head)} more characters]"


def _load(data: bytes | None) -> Page | None:
    try:
        return None if data is None else Page.model_validate_json(data)
    except ValidationError:  # Written by another version.
        return None


def _decoded(body: bytes, charset: str) -> str | None:
    """Decode the body; ``None`` if the character set is unknown."""
    try:
        return body.decode(charset, "replace") if charset else None
    except (LookupError, ValueError):
        return None
