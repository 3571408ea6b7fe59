"""Contracts of data sets: conversations, formatters, token counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deepeyes_plugins.protocol.content import Role


class RowError(ValueError):
    """A row cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training conversation.

    Attributes:
        turns: Role and text in order: at most one system turn, first; then user and assistant in
            alternation, ending with the assistant. ``<image>`` marks an image.
        images: One per ``<image>``, in order: paths, bytes or Pillow images.
    """

    turns: tuple[tuple[Role, str], ...]
    images: tuple[Any, ...] = ()


class TokenCounter(Protocol):
    """Counts tokens with a model's tokenizer and image processor."""

    def prompt(self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]) -> int:
        """Count a prompt, including the generation prompt.

        Args:
            turns: Role and text; ``<image>`` marks an image.
            sizes: Width and height of each image, in pixels.
        """

    def conversation(
        self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]
    ) -> int:
        """Count a whole conversation; arguments as in :meth:`prompt`."""


class Formatter(Protocol):
    """Turns a row of a data set into a conversation."""

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        """Format one row.

        Raises:
            RowError: The row cannot be used.
        """
