"""The main text of web pages."""

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
"""Bytes of UTF-8 that count as a token: an estimate of ours that holds for scripts of one byte a
letter and of three alike, where tokenizers have about a token a character; measured on none."""
_THREADS = 2
_MIB = 1 << 20
_KINDS = ("text/html", "application/xhtml+xml", "text/plain")


class Page(BaseModel):
    """What a reader reads of a page.

    Attributes:
        text: The main text, paragraphs with an empty line between them.
        title: Its title; empty if it has none.
        link: Where it is.
        date: When it says it was published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text
    title: Text = ""
    link: Text = ""
    date: Text = ""


def main_text(data: bytes | str) -> Page | None:
    """Take the main text out of an HTML page: no menus, notices and scripts.

    Args:
        data: The page; bytes are decoded as the page itself says.

    Returns:
        The page, or ``None`` if there is no text in it.
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
    """Fetches pages and gives their main text; belongs to one event loop."""

    def __init__(self, settings: PageSettings, store: ResponseStore, seconds: float) -> None:
        """Hold the settings; nothing is opened yet.

        Args:
            settings: What is read, and how much of it.
            store: Where pages are kept; it is not closed.
            seconds: How long they are kept.
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
        """Return the page at ``url``, its text cut to what the settings allow.

        Raises:
            FetchRefusedError: It may not be read, or there is no text in it.
            FetchError: It is not there, or not now.
            SearchNotConfiguredError: The library that takes out the text is missing.
        """
        key = "page:" + hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
        page = _load(await self._store.get(key))
        if page is None:
            page = await self._fetched(url)
            await self._store.put(key, page.model_dump_json().encode(), self._seconds)
        return page.model_copy(update={"text": shortened(page.text, self._settings.tokens)})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._fetcher.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _fetched(self, url: str) -> Page:
        found = await self._fetcher.fetch(url)
        # What the server says comes before what the page says, as in browsers.
        said = _decoded(found.body, found.charset)
        if found.content_type == "text/plain":
            text = (said or found.body.decode("utf-8", "replace")).strip()
            page = Page(text=text) if text else None
        else:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="deepeyes-pages")
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, main_text, said or found.body
            )
            try:
                # The thread goes on with a page made to take forever; this trajectory does not.
                page = await asyncio.wait_for(work, self._settings.timeout)
            except TimeoutError as error:
                raise FetchError("its text could not be taken out in time") from error
            except ModuleNotFoundError as error:
                raise SearchNotConfiguredError(
                    f"read_page: {error}; {install_command('search')}"
                ) from error
        if page is None:
            raise FetchRefusedError("there is no text in it")
        return page.model_copy(update={"link": found.url})


def shortened(text: str, tokens: int) -> str:
    """The beginning of a text, up to the end of a paragraph or word, and a note if more follows.

    Args:
        text: Any text.
        tokens: What may be left of it. The model's tokenizer is not at hand; see
            :data:`BYTES_PER_TOKEN`.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= tokens * BYTES_PER_TOKEN:
        return text
    kept = data[: tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
    end = max(kept.rfind("\n\n"), kept.rfind(" ", len(kept) * 3 // 4))
    kept = kept[: end if end > len(kept) // 2 else len(kept)].rstrip()
    return f"{kept}\n\n[{len(text) - len(kept)} more characters]"


def _load(data: bytes | None) -> Page | None:
    try:
        return None if data is None else Page.model_validate_json(data)
    except ValidationError:  # Of another version.
        return None


def _decoded(body: bytes, charset: str) -> str | None:
    """The body as text, if there is such a character set."""
    try:
        return body.decode(charset, "replace") if charset else None
    except (LookupError, ValueError):
        return None
