"""Hashes: of questions and images for deduplication, of inputs to recognise finished work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from deepeyes_plugins import __version__
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER


def fingerprint(inputs: Any) -> str:
    """Return a short hash of a JSON-like value; other values in it count as their text."""
    return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()[:16]


def file_fingerprint(path: Path, layout: int, *inputs: Any) -> str:
    """Return a hash that changes with a file, this package and other inputs of a result.

    Args:
        path: The file.
        layout: Version of the result's format.
        inputs: Other inputs, as in :func:`fingerprint`.

    Raises:
        OSError: There is no such file.
    """
    return fingerprint([str(path.absolute()), file_state(path), layout, __version__, *inputs])


def file_state(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file, which change with its content.

    Raises:
        OSError: There is no such file.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def question_words(question: str) -> bytes:
    """Normalize a question: words without case, white space and placeholders."""
    words = question.replace(IMAGE_PLACEHOLDER, " ").casefold().split()
    return " ".join(words).encode("utf-8", "replace")


def question_hash(question: str) -> int:
    """Return a 64-bit hash of the normalized question."""
    return _hash([question_words(question)])


def image_hash(data: bytes) -> int:
    """Return a 64-bit hash of an image file.

    XXH3 takes negligible time. SHA-256 takes a twentieth of the decoding time, and several times
    that on processors without instructions for it.
    """
    return xxhash.xxh3_64_intdigest(data)


def pair_hash(question: int, images: Iterable[int]) -> int:
    """Return a 64-bit hash of a question with its images, given their hashes."""
    return _hash(number.to_bytes(8, "big") for number in (question, *images))


def _hash(parts: Iterable[bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")
