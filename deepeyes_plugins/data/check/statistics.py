"""Statistics of rows: sources, turns, images, lengths, answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from deepeyes_plugins.data.check.histogram import Distribution
from deepeyes_plugins.data.check.images import ImageInfo

_MOST_NAMES = 1000
_OTHER = "(others)"
_ANSWER_KINDS = (
    ("choice", re.compile(r"\(?[A-J]\)?\.?")),
    ("number", re.compile(r"[-+]?[\d.,]*\d\s*%?")),
    ("yes or no", re.compile(r"yes|no|true|false", re.I)),
    ("word", re.compile(r"\S+")),
    ("up to 10 words", re.compile(r"\S+(?:\s+\S+){1,9}")),
)


@dataclass(frozen=True, slots=True)
class RowFacts:
    """Facts about a row, for statistics.

    Attributes:
        question: Text of the question.
        images: Images of the row.
        turns: Number of messages.
        characters: Characters of all messages.
        source: Data source; empty if the row has none.
        environment: Name of the environment; empty if the row has none.
        answer: Reference answer, or the last answer of a conversation.
        actions: Action of each assistant turn.
        tokens: Tokens of the prompt (RL) or conversation (SFT); ``None`` if not counted.
    """

    question: str
    images: tuple[ImageInfo, ...] = ()
    turns: int = 0
    characters: int = 0
    source: str = ""
    environment: str = ""
    answer: str | None = None
    actions: tuple[str, ...] = ()
    tokens: int | None = None


@dataclass(slots=True)
class Statistics:
    """Mergeable counts over rows.

    Attributes:
        sources: Rows by data source.
        environments: Rows by environment.
        turns: Rows by number of messages.
        images: Rows by number of images.
        actions: Assistant turns by action.
        answers: Rows by kind of answer.
        formats: Images by file format.
        modes: Images by pixel mode.
        widths: Upright widths of images in pixels.
        heights: Upright heights of images in pixels.
        pixels: Width times height of images.
        image_bytes: Sizes of image files.
        characters: Characters of a row's text.
        answer_characters: Characters of an answer.
        tokens: Tokens of the prompt (RL) or conversation (SFT), images included.
    """

    sources: Counter[str] = field(default_factory=Counter)
    environments: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    widths: Distribution = field(default_factory=Distribution)
    heights: Distribution = field(default_factory=Distribution)
    pixels: Distribution = field(default_factory=Distribution)
    image_bytes: Distribution = field(default_factory=Distribution)
    characters: Distribution = field(default_factory=Distribution)
    answer_characters: Distribution = field(default_factory=Distribution)
    tokens: Distribution = field(default_factory=Distribution)

    def add(self, facts: RowFacts) -> None:
        """Count a row."""
        _count(self.sources, facts.source or "(none)")
        _count(self.environments, facts.environment or "(none)")
        self.turns[facts.turns] += 1
        self.images[len(facts.images)] += 1
        self.actions.update(facts.actions)
        for seen in facts.images:
            self.formats[seen.format] += 1
            self.modes[seen.mode] += 1
            width, height = seen.size
            self.widths.add(width)
            self.heights.add(height)
            self.pixels.add(width * height)
            self.image_bytes.add(len(seen.image.data))
        self.characters.add(facts.characters)
        if facts.answer is not None:
            self.answers[kind_of_answer(facts.answer)] += 1
            self.answer_characters.add(len(facts.answer))
        if facts.tokens is not None:
            self.tokens.add(facts.tokens)

    def merge(self, other: Statistics) -> None:
        """Add the rows of ``other``."""
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(ours, Distribution):
                ours.merge(theirs)
            else:
                for name, count in theirs.items():
                    _count(ours, name, count)

    def summary(self) -> dict[str, Any]:
        """Return counts and summaries of distributions for JSON."""
        return {
            each.name: value.summary() if isinstance(value, Distribution) else by_count(value)
            for each in fields(self)
            for value in [getattr(self, each.name)]
        }


def kind_of_answer(answer: str) -> str:
    """Classify an answer: a choice, a number, words."""
    text = answer.strip()
    return next((name for name, form in _ANSWER_KINDS if form.fullmatch(text)), "longer text")


def by_count(counts: Mapping[Any, int]) -> dict[str, int]:
    """Return counts by name: numbers in ascending order, other names by frequency."""
    if counts and all(isinstance(name, int) for name in counts):
        return {str(name): counts[name] for name in sorted(counts)}
    return {str(name): counts[name] for name in sorted(counts, key=lambda name: -counts[name])}


def _count(counts: Counter[Any], name: Any, number: int = 1) -> None:
    counts[name if name in counts or len(counts) < _MOST_NAMES else _OTHER] += number
