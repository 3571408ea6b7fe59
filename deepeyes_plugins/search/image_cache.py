"""Image cache: responses to image searches that were collected in advance, in a SQLite file.

A response is found by the id of the image's question, by the hash of the image file, by the hash of
its pixels, or by the nearest perceptual hash. The file is written once and replaced atomically.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np

from deepeyes_plugins.files import owner_only, owner_only_folder
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
    """A cache cannot be written or opened; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """A cached response and how it was found.

    Attributes:
        data_id: Id of the question.
        way: What matched: question id, file hash, pixel hash, or perceptual hash (``likeness``).
        distance: Bits in which the perceptual hashes differ; 0 for an exact match.
        results: The results.
    """

    data_id: str
    way: Way
    distance: int
    results: tuple[ImageResult, ...]


class ImageCache:
    """An open cache. Its methods block; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open the file ``path``.

        Raises:
            ImageCacheError: The file is missing, or not an image cache of this version.
        """
        self.path = path
        self._lock = threading.Lock()
        hint = "create one with `deepeyes data prepare search-cache`"
        if not path.is_file():
            raise ImageCacheError(f"{path}: no such file; {hint}")
        try:
            # Threads share the connection: a second one might open a file that has replaced this.
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            self.facts = dict(self._connection.execute("SELECT name, value FROM facts"))
            if self.facts.get("format") != FORMAT:
                raise ImageCacheError(
                    f"{path}: has format {self.facts.get('format')!r}, this version reads "
                    f"{FORMAT!r}; {hint}"
                )
            rows = self._connection.execute(
                "SELECT likeness, data_id FROM questions WHERE likeness IS NOT NULL"
                " ORDER BY data_id, rowid"
            ).fetchall()
        except sqlite3.DatabaseError as error:
            raise ImageCacheError(f"{path}: not an image cache ({error}); {hint}") from error
        # A scan is fast enough: 100,000 images take 0.8 MB and a fraction of a millisecond.
        self._hashes = np.array([row[0] for row in rows], dtype=np.int64).view(np.uint64)
        self._names = [row[1] for row in rows]

    def find(
        self, image: EncodedImage, data_id: str = "", *, distance: int = 0, count: int = 10
    ) -> Found | None:
        """Find the cached response to an image; ``None`` if there is none.

        Args:
            image: The image. It is decoded only if neither question nor file is known.
            data_id: Id of the question, if the image is the question's own.
            distance: Bits in which perceptual hashes may differ, 0 to 64.
            count: Maximum number of results.

        Raises:
            ImageError: The image had to be decoded, and cannot be.
        """
        if data_id and self._one("SELECT data_id FROM answers WHERE data_id = ?", data_id):
            return self._found(data_id, "id", 0, count)
        match = self._one("SELECT data_id FROM questions WHERE file = ?", image.sha256)
        if match:
            return self._found(match, "file", 0, count)
        pixels = image.pil()
        match = self._one("SELECT data_id FROM questions WHERE pixels = ?", pixel_hash(pixels))
        if match:
            return self._found(match, "pixels", 0, count)
        wanted = perceptual_hash(pixels)
        if wanted is None or not len(self._hashes):
            return None
        index, bits = nearest(self._hashes, wanted)
        return (
            self._found(self._names[index], "likeness", bits, count) if bits <= distance else None
        )

    def counts(self) -> dict[str, int]:
        """Return the number of answers, results, thumbnails and questions' images."""
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
    """Writes a cache; the file appears when the context ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Self:
        """Create a temporary file beside the target.

        Raises:
            ImageCacheError: The target is a folder.
            OSError: The file cannot be created.
        """
        if self._path.is_dir():
            raise ImageCacheError(f"{self._path}: is a folder; name a file")
        owner_only_folder(self._path.parent)
        self._draft.unlink(missing_ok=True)
        owner_only(self._draft)
        self._connection = sqlite3.connect(self._draft)
        # No journal: the temporary file is useless after a crash.
        self._connection.execute("PRAGMA journal_mode=OFF")
        self._connection.executescript(_SCHEMA)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Move the complete file to its target, or remove it after an error."""
        if kind is not None:
            self._connection.close()
            self._draft.unlink(missing_ok=True)
            return
        self._connection.execute("INSERT INTO facts VALUES ('format', ?)", (FORMAT,))
        self._connection.commit()
        self._connection.close()
        self._draft.replace(self._path)

    def fact(self, name: str, value: str) -> None:
        """Store metadata about the cache."""
        self._connection.execute("INSERT INTO facts VALUES (?, ?)", (name, value))

    def answer(self, data_id: str, results: Iterable[ImageResult]) -> None:
        """Add the response for a question; its thumbnails are within the protocol's limits."""
        self._connection.execute("INSERT INTO answers VALUES (?)", (data_id,))
        for rank, result in enumerate(results):
            thumbnail = None
            if result.thumbnail is not None:
                thumbnail = result.thumbnail.sha256
                self._connection.execute(
                    "INSERT OR IGNORE INTO thumbnails VALUES (?, ?)",
                    (thumbnail, result.thumbnail.data),
                )
            self._connection.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?)",
                (data_id, rank, result.title, result.link, thumbnail),
            )

    def question(self, data_id: str, image: EncodedImage) -> None:
        """Add the image of a question.

        Raises:
            ImageError: The image cannot be decoded.
        """
        pixels = image.pil()
        self.hashes(data_id, image.sha256, pixel_hash(pixels), perceptual_hash(pixels))

    def hashes(self, data_id: str, file: str, pixels: str, perceptual: int | None) -> None:
        """Add the hashes of a question's image: of its file, its pixels and its structure."""
        # SQLite has signed integers only.
        signed = None if perceptual is None else int(np.uint64(perceptual).astype(np.int64))
        self._connection.execute(
            "INSERT INTO questions VALUES (?, ?, ?, ?)", (file, pixels, signed, data_id)
        )
