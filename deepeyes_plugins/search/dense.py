"""Dense retrieval: exact nearest passages by the vectors of a sentence-transformers model.

Vectors are stored in one file in half precision, and a query is compared with all of them. That is
exact and needs no vector library; it takes a few tenths of a second for a million passages. For a
larger corpus, use a retrieval server (provider ``retriever``).
"""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np

from deepeyes_plugins.extras import install_command
from deepeyes_plugins.search.corpus import LocalIndexError

FILE = "vectors.f16"
_BATCH = 256
_ROWS = 65_536


class Encoder:
    """Encodes text as vectors of length 1; threads may share it."""

    def __init__(self, model: str) -> None:
        """Load the model.

        Args:
            model: Name on the Hugging Face hub, or folder.

        Raises:
            LocalIndexError: The library is missing, or the model cannot be loaded.
        """
        try:
            # Imported dynamically: torch is needed by dense retrieval only.
            library: Any = import_module("sentence_transformers")
        except ImportError as error:
            raise LocalIndexError(f"{error}; {install_command('dense')}") from error
        try:
            self._model = library.SentenceTransformer(model)
        except Exception as error:  # Hub, disk and torch raise exceptions of their own.
            raise LocalIndexError(f"the model {model!r} cannot be loaded: {error}") from error
        self._lock = threading.Lock()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return vectors, shape (texts, dimensions), dtype float32."""
        with self._lock:
            vectors = self._model.encode(
                texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)


class VectorWriter:
    """Writes the vectors of passages, in batches."""

    def __init__(self, folder: Path, encoder: Encoder, prompt: str) -> None:
        """Create the file in ``folder``; ``prompt`` is prepended to each passage."""
        self._file = (folder / FILE).open("wb")
        self._encoder = encoder
        self._prompt = prompt
        self._batch: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last batch, unless the build failed, and close the file."""
        if kind is None:
            self._flush()
        self._file.close()

    def add(self, text: str) -> None:
        """Add the next passage."""
        self._batch.append(self._prompt + text)
        if len(self._batch) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._file.write(self._encoder.encode(self._batch).astype(np.float16).tobytes())
            self._batch.clear()


class Vectors:
    """The vectors of an index, memory-mapped."""

    def __init__(self, folder: Path, passages: int, encoder: Encoder, prompt: str) -> None:
        """Open the vectors in ``folder``; ``prompt`` is prepended to each query.

        Raises:
            LocalIndexError: The file is missing or incomplete.
        """
        try:
            flat = np.memmap(folder / FILE, dtype=np.float16, mode="r")
            self._vectors = flat.reshape(passages, -1)
        except (OSError, ValueError) as error:
            raise LocalIndexError(
                f"{folder / FILE}: cannot be opened ({error}); if the index has been rebuilt, "
                "reopen it"
            ) from error
        self._encoder = encoder
        self._prompt = prompt

    def nearest(self, text: str, count: int) -> list[tuple[float, int]]:
        """Return cosine and number of the ``count`` nearest passages, nearest first."""
        query = self._encoder.encode([self._prompt + text])[0]
        scores: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        for start in range(0, len(self._vectors), _ROWS):
            cosines = self._vectors[start : start + _ROWS].astype(np.float32) @ query
            # Stable, so that equal passages are in the order of the corpus.
            best = np.argsort(-cosines, kind="stable")[:count]
            scores.append(cosines[best])
            numbers.append(best + start)
        score, number = np.concatenate(scores), np.concatenate(numbers)
        order = np.argsort(-score, kind="stable")[:count]
        return [(float(score[at]), int(number[at])) for at in order]
