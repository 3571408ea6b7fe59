"""Passages and queries that are made up, with the statistics of real text.

Words follow Zipf's law as Mandelbrot amended it, p(rank) ~ 1 / (rank + 2.7) ** 1.05 over 600,000
words: the commonest word is in nearly every passage, the rare half in one or two. Passages are
about 100 words long (log-normal, sigma 0.35), like those of Wikipedia in Search-R1. A query takes
2 to 10 words of one passage as they come, common ones included: what a model writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VOCABULARY = 600_000
EXPONENT = 1.05
SHIFT = 2.7
MEAN_WORDS = 100
SIGMA = 0.35
TITLE_WORDS = 4
QUERY_WORDS = (2, 10)
_CHUNK = 20_000
_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


def word(rank: int) -> str:
    """A pronounceable word for each rank, short ones for the common."""
    syllables = []
    rank += 1
    while rank:
        rank, digit = divmod(rank, len(_CONSONANTS) * len(_VOWELS))
        syllables.append(_CONSONANTS[digit // len(_VOWELS)] + _VOWELS[digit % len(_VOWELS)])
    return "".join(syllables)


def _cumulative() -> np.ndarray:
    weights = 1.0 / (np.arange(VOCABULARY) + SHIFT) ** EXPONENT
    return np.cumsum(weights / weights.sum())


def passages(count: int, seed: int = 0) -> Iterator[str]:
    """Yield the text of each passage."""
    generator = np.random.default_rng(seed)
    words = np.array([word(rank) for rank in range(VOCABULARY)], dtype=object)
    cumulative = _cumulative()
    for start in range(0, count, _CHUNK):
        many = min(_CHUNK, count - start)
        lengths = generator.lognormal(np.log(MEAN_WORDS) - SIGMA**2 / 2, SIGMA, many)
        lengths = np.maximum(lengths.astype(int), 5)
        ranks = np.searchsorted(cumulative, generator.random(int(lengths.sum())))
        chosen = words[np.minimum(ranks, VOCABULARY - 1)]
        for piece in np.split(chosen, np.cumsum(lengths)[:-1]):
            yield " ".join(piece)


def write_corpus(path: Path, count: int, seed: int = 0) -> None:
    """Write the passages as JSON lines, in the form of Search-R1's corpora."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(passages(count, seed)):
            title = " ".join(text.split(" ", TITLE_WORDS)[:TITLE_WORDS])
            row = {"id": str(number), "contents": f'"{title}"\n{text}'}
            file.write(json.dumps(row) + "\n")


def queries(count: int, seed: int = 1) -> list[str]:
    """Return queries; each is part of a passage that :func:`passages` might have made."""
    generator = np.random.default_rng(seed)
    least, most = QUERY_WORDS
    made = []
    for text in passages(count, seed):
        words = text.split()
        length = int(generator.integers(least, most + 1))
        made.append(" ".join(generator.choice(words, min(length, len(words)), replace=False)))
    return made
