"""The main text of web pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """What a reader reads of a page.

    Attributes:
        text: The main text, paragraphs with an empty line between them.
        title: Its title; empty if it has none.
        link: Where it says it is.
        date: When it says it was published.
    """

    text: str
    title: str = ""
    link: str = ""
    date: str = ""


def main_text(data: bytes | str) -> Page | None:
    """Take the main text out of an HTML page: no menus, notices and scripts.

    Args:
        data: The page; bytes are decoded as the page itself says.

    Returns:
        The page, or ``None`` if there is no text in it.
    """
    import trafilatura

    document = trafilatura.bare_extraction(data, with_metadata=True, include_comments=False)
    if document is None or not (document.text or "").strip():
        return None
    lines = (line.strip() for line in document.text.splitlines())
    return Page(
        "\n\n".join(filter(None, lines)),
        document.title or "",
        document.url or "",
        document.date or "",
    )
