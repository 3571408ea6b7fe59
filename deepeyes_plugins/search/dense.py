"""Dense retrieval: passages near a query in meaning, by any sentence-transformers model.

Vectors lie in one file, half precision, and every one of them is compared: exact and without a
second library, at a price that grows with the index (a few tenths of a second for a million
passages). A larger collection is a retrieval server's task (provider ``retriever``).
"""

from __future__ import annotations

import threading
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deepeyes_plugins.extras import install_command
from deepeyes_plugins.search.corpus import LocalIndexError

FILE = "vectors.f16"
_BATCH = 256
_ROWS = 65_536


class Encoder:
    """Turns text into vectors of length 1; threads may share it."""

    def __init__(self, model: str) -> None:
        """Load a model.

        Args:
            model: Name on the hub or folder.

        Raises:
            LocalIndexError: The library is missing, or the model cannot be loaded.
        """
        try:
            # Not imported by name: it brings torch, which nobody else here needs.
            library: Any = import_module("sentence_transformers")
        except ImportError as error:
            raise LocalIndexError(f"{error}; {install_command('dense')}") from error
        try:
            self._model = library.SentenceTransformer(model)
        except Exception as error:  # Hub, disk, torch: each has its own.
            raise LocalIndexError(f"the model {model!r} cannot be loaded: {error}") from error
        self._lock = threading.Lock()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return vectors, shape (texts, dimensions), dtype float32."""
        with self._lock:
            found = self._model.encode(
                texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(found, dtype=np.float32)


class VectorWriter:
    """Writes the vectors of passages in their order."""

    def __init__(self, folder: Path, encoder: Encoder, prompt: str) -> None:
        """Write into ``folder``; ``prompt`` goes before each passage."""
        self._file = (folder / FILE).open("wb")
        self._encoder = encoder
        self._prompt = prompt
        self._waiting: list[str] = []

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what waits, unless the build has failed."""
        if kind is None:
            self._flush()
        self._file.close()

    def add(self, text: str) -> None:
        """Take the next passage."""
        self._waiting.append(self._prompt + text)
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write(self._encoder.encode(self._waiting).astype(np.float16).tobytes())
            self._waiting.clear()


class Vectors:
    """The vectors of an index, mapped into memory."""

    def __init__(self, folder: Path, passages: int, encoder: Encoder, prompt: str) -> None:
        """Open the vectors in ``folder``; ``prompt`` goes before each query.

        Raises:
            LocalIndexError: They are not there, or not whole.
        """
        try:
            flat = np.memmap(folder / FILE, dtype=np.float16, mode="r")
            self._vectors = flat.reshape(passages, -1)
        except (OSError, ValueError) as error:
            raise LocalIndexError(
                f"{folder / FILE}: cannot be opened ({error}); if the index was built again, open "
                "it again"
            ) from error
        self._encoder = encoder
        self._prompt = prompt

    def nearest(self, text: str, count: int) -> list[tuple[float, int]]:
        """Return cosine and number of the ``count`` nearest passages, the nearest first."""
        wanted = self._encoder.encode([self._prompt + text])[0]
        scores: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        for start in range(0, len(self._vectors), _ROWS):
            near = self._vectors[start : start + _ROWS].astype(np.float32) @ wanted
            # A stable order, so that equal passages come in the order of the corpus.
            best = np.argsort(-near, kind="stable")[:count]
            scores.append(near[best])
            numbers.append(best + start)
        score, number = np.concatenate(scores), np.concatenate(numbers)
        order = np.argsort(-score, kind="stable")[:count]
        return [(float(score[at]), int(number[at])) for at in order]
