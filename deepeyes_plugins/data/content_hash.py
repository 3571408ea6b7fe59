"""Content hashes of questions and images, for deduplication in checks, merges and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import xxhash

from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER


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
