"""Answers to searches by image that were collected once: one SQLite file.

An image is found by the name of its question; by its file; by its pixels, whatever file they come
in; or, if that is allowed, by its likeness: the image whose perceptual hash differs in the fewest
bits. The file is written once and replaced as a whole.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.search.contracts import ImageResult
from deepeyes_plugins.search.perceptual_hash import nearest, perceptual_hash, pixel_hash

FORMAT: Final = "deepeyes image cache 1"

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE thumbnails (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE answers (data_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE results (
    data_id TEXT NOT NULL, place INTEGER NOT NULL, title TEXT NOT NULL, link TEXT NOT NULL,
    thumbnail TEXT, PRIMARY KEY (data_id, place)
) WITHOUT ROWID;
CREATE TABLE questions (
    file TEXT NOT NULL, pixels TEXT NOT NULL, likeness INTEGER, data_id TEXT NOT NULL
);
CREATE INDEX by_file ON questions (file, data_id);
CREATE INDEX by_pixels ON questions (pixels, data_id);
"""

Way = Literal["id", "file", "pixels", "likeness"]


class ImageCacheError(Exception):
    """A cache cannot be made or opened; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer and how it was found.

    Attributes:
        data_id: Name of the question whose answer it is.
        way: What was the same.
        distance: Bits in which the perceptual hashes differ; 0 where something was the same.
        results: The answer.
    """

    data_id: str
    way: Way
    distance: int
    results: tuple[ImageResult, ...]


class ImageCache:
    """An open cache. Its methods block; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open the cache in the file ``path``.

        Raises:
            ImageCacheError: There is none, or it is none.
        """
        self.path = path
        self._lock = threading.Lock()
        hint = "make one with `deepeyes search image-cache convert`"
        if not path.is_file():
            raise ImageCacheError(f"{path}: there is no such file; {hint}")
        try:
            # One connection for all threads: another one might open a file that has replaced this.
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            self.facts = dict(self._connection.execute("SELECT name, value FROM facts"))
            if self.facts.get("format") != FORMAT:
                raise ImageCacheError(
                    f"{path}: {self.facts.get('format')!r}, this version reads {FORMAT!r}; {hint}"
                )
            rows = self._connection.execute(
                "SELECT likeness, data_id FROM questions WHERE likeness IS NOT NULL"
                " ORDER BY data_id, rowid"
            ).fetchall()
        except sqlite3.DatabaseError as error:
            raise ImageCacheError(f"{path}: no image cache ({error}); {hint}") from error
        # 100,000 images: 0.8 MB and a fraction of a millisecond for all of them.
        self._hashes = np.array([row[0] for row in rows], dtype=np.int64).view(np.uint64)
        self._names = [row[1] for row in rows]

    def find(
        self, image: EncodedImage, data_id: str = "", *, distance: int = 0, count: int = 10
    ) -> Found | None:
        """Look for an answer.

        Args:
            image: The image; it is decoded only if neither its question nor its file is known.
            data_id: Name of its question, if it is the question's own.
            distance: Bits in which a perceptual hash may differ, 0 to 64.
            count: Results at most.

        Raises:
            ImageError: The image had to be decoded, and cannot be.
        """
        if data_id and self._one("SELECT data_id FROM answers WHERE data_id = ?", data_id):
            return self._found(data_id, "id", 0, count)
        known = self._one("SELECT data_id FROM questions WHERE file = ?", image.sha256)
        if known:
            return self._found(known, "file", 0, count)
        pixels = image.pil()
        known = self._one("SELECT data_id FROM questions WHERE pixels = ?", pixel_hash(pixels))
        if known:
            return self._found(known, "pixels", 0, count)
        wanted = perceptual_hash(pixels)
        if wanted is None or not len(self._hashes):
            return None
        place, bits = nearest(self._hashes, wanted)
        return (
            self._found(self._names[place], "likeness", bits, count) if bits <= distance else None
        )

    def counts(self) -> dict[str, int]:
        """How many answers, results, thumbnails and questions' images there are."""
        return {
            table: self._rows(f"SELECT COUNT(*) FROM {table}")[0][0]
            for table in ("answers", "results", "thumbnails", "questions")
        }

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _one(self, query: str, value: str) -> str | None:
        rows = self._rows(f"{query} ORDER BY data_id LIMIT 1", value)
        return rows[0][0] if rows else None

    def _found(self, data_id: str, way: Way, distance: int, count: int) -> Found:
        rows = self._rows(
            "SELECT title, link, data FROM results LEFT JOIN thumbnails ON sha256 = thumbnail"
            " WHERE data_id = ? ORDER BY place LIMIT ?",
            data_id,
            count,
        )
        results = tuple(
            ImageResult(title, None if data is None else EncodedImage(data), link)
            for title, link, data in rows
        )
        return Found(data_id, way, distance, results)


class ImageCacheWriter:
    """Writes a cache; it takes its place when the context ends well, and not before."""

    def __init__(self, path: Path) -> None:
        """Write what will be the file ``path``."""
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            ImageCacheError: A folder is where the file is to be.
            OSError: The file cannot be made there.
        """
        if self._path.is_dir():
            raise ImageCacheError(f"{self._path}: is a folder; name the file that is to be made")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._draft.unlink(missing_ok=True)
        self._connection = sqlite3.connect(self._draft)
        # A draft that a crash leaves is of no use anyway.
        self._connection.execute("PRAGMA journal_mode=OFF")
        self._connection.executescript(_SCHEMA)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the whole cache in its place, or remove the part."""
        if kind is not None:
            self._connection.close()
            self._draft.unlink(missing_ok=True)
            return
        self._connection.execute("INSERT INTO facts VALUES ('format', ?)", (FORMAT,))
        self._connection.commit()
        self._connection.close()
        self._draft.replace(self._path)

    def fact(self, name: str, value: str) -> None:
        """Keep something about the cache, for people."""
        self._connection.execute("INSERT INTO facts VALUES (?, ?)", (name, value))

    def answer(self, data_id: str, results: Iterable[ImageResult]) -> None:
        """Add the answer to a question; the thumbnails are within the protocol's limits."""
        self._connection.execute("INSERT INTO answers VALUES (?)", (data_id,))
        for place, result in enumerate(results):
            name = None
            if result.thumbnail is not None:
                name = result.thumbnail.sha256
                self._connection.execute(
                    "INSERT OR IGNORE INTO thumbnails VALUES (?, ?)", (name, result.thumbnail.data)
                )
            self._connection.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?)",
                (data_id, place, result.title, result.link, name),
            )

    def question(self, data_id: str, image: EncodedImage) -> None:
        """Add the image that a question asks about.

        Raises:
            ImageError: It cannot be decoded.
        """
        pixels = image.pil()
        self.fingerprint(data_id, image.sha256, pixel_hash(pixels), perceptual_hash(pixels))

    def fingerprint(self, data_id: str, file: str, pixels: str, likeness: int | None) -> None:
        """Add what is known of a question's image: hashes of its file, pixels and look."""
        # SQLite has signed integers only.
        signed = None if likeness is None else int(np.uint64(likeness).astype(np.int64))
        self._connection.execute(
            "INSERT INTO questions VALUES (?, ?, ?, ?)", (file, pixels, signed, data_id)
        )
