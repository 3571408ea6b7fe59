"""What makes two questions or two images the same: the rule of checks, merges and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import xxhash

from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER


def question_words(question: str) -> bytes:
    """Return what counts of a question: its words, without case, white space and placeholders."""
    words = question.replace(IMAGE_PLACEHOLDER, " ").casefold().split()
    return " ".join(words).encode("utf-8", "replace")


def question_hash(question: str) -> int:
    """Return 64 bits of what counts of a question."""
    return _hash([question_words(question)])


def image_hash(data: bytes) -> int:
    """Return 64 bits of an image file.

    By XXH3, which takes no time to speak of. SHA-256 takes a twentieth of what decoding takes, and
    several times that where the processor has no instructions for it.
    """
    return xxhash.xxh3_64_intdigest(data)


def pair_hash(question: int, images: Iterable[int]) -> int:
    """Return 64 bits of a question with its images, of which the hashes are given."""
    return _hash(number.to_bytes(8, "big") for number in (question, *images))


def _hash(parts: Iterable[bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")
