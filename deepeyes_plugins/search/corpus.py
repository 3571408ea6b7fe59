"""Corpus reader: passages from JSON lines, Parquet, Markdown, text and HTML.

Each row of JSON lines and Parquet is a passage; documents are split into passages at paragraphs.
Files of a folder are read in the order of their paths, so that the same files give the same corpus.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.content import encodable
from deepeyes_plugins.protocol.missing import is_missing

_BATCH_ROWS = 1024
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "_id", "docid", "doc_id"),
    "title": ("title", "name"),
    "text": ("text", "contents", "content", "passage", "body"),
    "link": ("link", "url", "source"),
    "date": ("date", "published", "timestamp"),
}
"""Column names of Search-R1, BEIR, MS MARCO and DPR; the first that is not empty is used."""
_HEADING = re.compile(r"^#{1,6}[ \t]++(\S.*)$", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…](?=\s)|[。！？]|\n")


class LocalIndexError(Exception):
    """An index cannot be built, opened or searched; the message says why and what to do."""


class CorpusError(LocalIndexError):
    """A corpus cannot be read; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Unit of search.

    Attributes:
        id: Name in the corpus, or a path or URL.
        text: Text, searched together with the title.
        title: Title of the document.
        link: URL or path of the document; empty if unknown.
        date: Date of publication as the corpus writes it.
    """

    id: str
    text: str
    title: str = ""
    link: str = ""
    date: str = ""


class Corpus:
    """Files of a corpus, to be read once.

    Attributes:
        files: The files, in order.
        size: Size of all files in bytes.
        done: Bytes read so far, approximately.
        skipped: Number of rows and documents without text, or that cannot be read.
        first_fault: File, row and reason of the first of them.
    """

    def __init__(self, paths: list[Path], passage_characters: int) -> None:
        """Find the files without reading them.

        Args:
            paths: Files, and folders that are searched for files of known types.
            passage_characters: Maximum length of a passage that is split from a document.

        Raises:
            CorpusError: No file is found, or a file has an unknown type.
        """
        self.files = [file for path in paths for file in _files(path)]
        if not self.files:
            raise CorpusError(
                f"no corpus file in {', '.join(map(str, paths)) or 'nothing'}; expected *"
                f"{', *'.join(_READERS)}"
            )
        self.size = sum(file.stat().st_size for file in self.files)
        self.done = 0
        self.skipped = 0
        self.first_fault = ""
        self._passage_characters = passage_characters

    def __iter__(self) -> Iterator[Passage]:
        """Yield every passage.

        Raises:
            CorpusError: A file cannot be read.
        """
        done = 0
        for file in self.files:
            try:
                yield from _READERS[_suffix(file)](self, file)
            except CorpusError:
                raise
            except Exception as error:  # Decoders raise exceptions of any type.
                raise CorpusError(f"{file}: cannot be read: {error}") from error
            done += file.stat().st_size
            self.done = done

    def _skip(self, file: Path, row: int, reason: str) -> None:
        self.skipped += 1
        self.first_fault = self.first_fault or f"{file}, row {row}: {reason}"

    def _from_row(self, file: Path, number: int, row: Any) -> Passage | None:
        if not isinstance(row, Mapping):
            self._skip(file, number, f"expected keys and values, found {type(row).__name__}")
            return None
        found = {field: _first(row, names) for field, names in _FIELDS.items()}
        title, text = found["title"], found["text"]
        if not text:
            names = ", ".join(_FIELDS["text"])
            self._skip(file, number, f"no text in any of the columns {names}")
            return None
        if not title and text.startswith('"') and '"\n' in text:
            # Search-R1's corpora: the title in quotation marks, then the text.
            title, text = text[1:].split('"\n', 1)
        return Passage(
            found["id"] or f"{file.name}#{number}", text, title, found["link"], found["date"]
        )

    def _jsonl(self, file: Path) -> Iterator[Passage]:
        with file.open("rb") as raw:
            start = self.done
            lines = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
            for number, line in enumerate(lines, 1):
                self.done = start + raw.tell() if number % _BATCH_ROWS == 0 else self.done
                if not line.strip():
                    continue
                try:
                    row = read_json(line)
                except ValueError as error:
                    self._skip(file, number, f"not valid JSON: {error}")
                    continue
                except RecursionError:
                    self._skip(file, number, "JSON nested too deeply")
                    continue
                if (passage := self._from_row(file, number, row)) is not None:
                    yield passage

    def _parquet(self, file: Path) -> Iterator[Passage]:
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(file)
        known = {name for names in _FIELDS.values() for name in names}
        columns = [name for name in table.schema_arrow.names if name in known]
        start, rows = self.done, max(1, table.metadata.num_rows)
        number = 1
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                if (passage := self._from_row(file, number, row)) is not None:
                    yield passage
                number += 1
            self.done = start + file.stat().st_size * (number - 1) // rows

    def _markdown(self, file: Path) -> Iterator[Passage]:
        text = file.read_text(encoding="utf-8", errors="replace")
        heading = _HEADING.search(text)
        title = heading.group(1).rstrip(" \t#") if heading else ""
        yield from self._passages(file, text, title or file.stem)

    def _html(self, file: Path) -> Iterator[Passage]:
        from deepeyes_plugins.search.pages import main_text

        page = main_text(file.read_bytes())
        if page is None:
            self._skip(file, 0, "no text in the page")
            return
        yield from self._passages(file, page.text, page.title or file.stem, page.link, page.date)

    def _passages(
        self, file: Path, text: str, title: str, link: str = "", date: str = ""
    ) -> Iterator[Passage]:
        passages = split_passages(text, self._passage_characters)
        if not passages:
            self._skip(file, 0, "no text")
        for number, passage in enumerate(passages):
            yield Passage(f"{file}#{number}", passage, title, link or str(file), date)


def split_passages(text: str, characters: int) -> list[str]:
    """Split text into passages of whole paragraphs; split long paragraphs after a sentence.

    Args:
        text: Paragraphs, separated by empty lines.
        characters: Maximum length of a passage.
    """
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        rest = paragraph.strip()
        if passages and rest and len(passages[-1]) + 2 + len(rest) <= characters:
            passages[-1] += f"\n\n{rest}"
            continue
        while len(rest) > characters:
            window = rest[:characters]
            ends = [match.end() for match in _SENTENCE_END.finditer(window)]
            end = max((end for end in ends if end > characters // 2), default=0)
            end = end or window.rfind(" ", characters // 2) + 1 or characters
            passages.append(rest[:end].strip())
            rest = rest[end:].strip()
        if rest:
            passages.append(rest)
    return [passage for passage in passages if passage]


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first value that is not empty, as text without lone surrogates."""
    for name in names:
        value = row.get(name)
        if not is_missing(value) and not isinstance(value, list | dict | bytes):
            return encodable(str(value))
    return ""


def _suffix(file: Path) -> str:
    name = file.name.lower()
    return max((known for known in _READERS if name.endswith(known)), key=len, default="")


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file))
    elif not path.is_file():
        raise CorpusError(f"{path}: no such file or folder")
    elif not _suffix(path):
        raise CorpusError(f"{path}: unknown file type; expected *{', *'.join(_READERS)}")
    else:
        yield path


_READERS: Mapping[str, Callable[[Corpus, Path], Iterator[Passage]]] = {
    ".jsonl": Corpus._jsonl,
    ".jsonl.gz": Corpus._jsonl,
    ".ndjson": Corpus._jsonl,
    ".parquet": Corpus._parquet,
    ".md": Corpus._markdown,
    ".markdown": Corpus._markdown,
    ".txt": Corpus._markdown,
    ".html": Corpus._html,
    ".htm": Corpus._html,
}
