"""Token stream of one trajectory: append-only; generated ids are never re-encoded.

::

    prompt_ids    |<- system, question, "<think>" ->|
    response_ids                                    |<- turn ->|<- context ->|<- turn ->| ...
    response_mask                                   | 1 1 1  1 | 0  0  0   0 | 1  1  1  |

Context is everything that the policy did not generate: the ``<|im_end|>`` that the engine omits
after a stop string, the observation, the opening of the next turn and its ``<think>``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True)
class TokenStream:
    """The tokens of one trajectory.

    Attributes:
        prompt_ids: Ids before the first generated token.
        response_ids: Ids from the first generated token on.
        response_mask: 1 for ids that the policy generated, else 0.
        log_probs: The engine's log-probability of each response id, 0.0 for context; ``None`` if
            the engine returned none for a turn.
        budget: Maximum length of ``response_ids``.
    """

    prompt_ids: list[int]
    budget: int
    response_ids: list[int] = field(default_factory=list)
    response_mask: list[int] = field(default_factory=list)
    log_probs: list[float] | None = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """Ids of prompt and response."""
        return self.prompt_ids + self.response_ids

    @property
    def room(self) -> int:
        """Number of response tokens left in the budget."""
        return self.budget - len(self.response_ids)

    def append_generated(self, ids: Sequence[int], log_probs: Sequence[float] | None) -> None:
        """Append a turn of the policy.

        Args:
            ids: Generated ids, at most :attr:`room`.
            log_probs: One per id, or ``None`` if the engine returned none.

        Raises:
            ValueError: There are too many ids, or the number of log-probabilities differs.
        """
        if log_probs is not None and len(log_probs) != len(ids):
            raise ValueError(f"{len(ids)} generated ids but {len(log_probs)} log-probabilities")
        self._append(ids, mask=1)
        if log_probs is None:
            self.log_probs = None
        elif self.log_probs is not None:
            self.log_probs.extend(log_probs)

    def append_context(self, ids: Sequence[int]) -> None:
        """Append ids that the policy did not generate.

        Raises:
            ValueError: There are too many ids.
        """
        self._append(ids, mask=0)
        if self.log_probs is not None:
            self.log_probs.extend([0.0] * len(ids))

    def _append(self, ids: Sequence[int], mask: int) -> None:
        if len(ids) > self.room:
            raise ValueError(f"{len(ids)} ids exceed the remaining budget of {self.room}")
        self.response_ids.extend(ids)
        self.response_mask.extend([mask] * len(ids))


class CutTurn(NamedTuple):
    """Number of generated ids that belong to a turn, and their text."""

    length: int
    text: str


def cut_turn(
    ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    closing_tags: Sequence[str],
    forbidden: frozenset[int],
    forbidden_texts: Sequence[str] = (),
) -> CutTurn:
    """Find the end of a turn.

    A turn ends with the id that completes the first closing tag (engines without stop strings
    continue), before the first forbidden id (not every engine can forbid ids), and before the id
    that completes a forbidden text from ordinary tokens (verl decodes the whole sequence for the
    image processor, which would read such a text as an image placeholder).

    Args:
        ids: Generated ids.
        decode: Function from ids to text. The text of a prefix of the ids must be a prefix of the
            whole text, except for an incomplete last character.
        closing_tags: For instance ``("</code>", "</tool_call>")``.
        forbidden: Ids that must not be trained on, see ``Dialect.forbidden``.
        forbidden_texts: The texts of these ids.
    """
    length = next((at for at, token in enumerate(ids) if token in forbidden), len(ids))
    text = decode(ids[:length])
    if any(one in text for one in forbidden_texts):
        length = _shortest(ids[:length], decode, forbidden_texts) - 1
        text = decode(ids[:length])
    if not any(tag in text for tag in closing_tags):
        return CutTurn(length, text)
    end = _shortest(ids[:length], decode, closing_tags)
    return CutTurn(end, text if end == length else decode(ids[:end]))


def _shortest(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], texts: Sequence[str]
) -> int:
    """Return the length of the shortest prefix of ``ids`` whose text contains one of ``texts``."""

    def complete(count: int) -> bool:
        prefix = decode(ids[:count])
        return any(text in prefix for text in texts)

    # Most turns end at their tag, so search from the end: every test decodes a whole prefix.
    high, step = len(ids), 1
    while complete(low := max(0, len(ids) - step)):
        high, step = low, 2 * step
    while low + 1 < high:
        middle = (low + high) // 2
        if complete(middle):
            high = middle
        else:
            low = middle
    return high
