"""Scripted policy, for tests, demonstrations and synthetic training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.rollout.contracts import AssistantTurn, Observation, Task

Line = str | AssistantTurn
Cue = Callable[[tuple[Message, ...]], Line]


class ScriptedPolicy:
    """Returns one scripted line per turn and records the conversation.

    Example:
        >>> policy = ScriptedPolicy(["<think>Seen.</think><answer>red</answer>"])
        >>> trajectory = await rollout(policy, environment, task)

    Attributes:
        messages: The conversation so far: prompt, turns and observations.
    """

    def __init__(self, lines: Iterable[Line | Cue], *, observations: int | None = None) -> None:
        """Create the policy.

        Args:
            lines: One per turn, in order: a text, a whole turn, or a function of the conversation
                so far, for lines that depend on observations. After the last one the token
                budget is exhausted.
            observations: Number of observations that fit in the budget; unlimited by default.
        """
        self._lines = iter(lines)
        self._room = observations
        self.messages: tuple[Message, ...] = ()

    async def begin(self, task: Task) -> None:
        """Start with the prompt of ``task``."""
        self.messages = task.messages

    async def act(self) -> AssistantTurn | None:
        """Return the next line as a turn; ``None`` after the last one."""
        line = next(self._lines, None)
        if line is None:
            return None
        if callable(line):
            line = line(self.messages)
        turn = AssistantTurn(line) if isinstance(line, str) else line
        self.messages += (Message("assistant", (turn.text,)),)
        return turn

    async def observe(self, observation: Observation) -> bool:
        """Record an observation; return ``False`` if it does not fit."""
        if self._room is not None:
            if not self._room:
                return False
            self._room -= 1
        self.messages += (observation.message,)
        return True
