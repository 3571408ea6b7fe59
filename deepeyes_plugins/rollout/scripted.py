"""A policy that plays a script: for tests, demonstrations and made-up training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.rollout.contracts import AssistantTurn, Observation, Task

Line = str | AssistantTurn
Cue = Callable[[tuple[Message, ...]], Line]


class ScriptedPolicy:
    """Says one line per turn, whatever it is shown, and keeps the conversation.

    Example:
        >>> policy = ScriptedPolicy(["<think>Seen.</think><answer>red</answer>"])
        >>> trajectory = await rollout(policy, environment, task)

    Attributes:
        messages: The conversation so far: the prompt, then turns and observations as they came.
    """

    def __init__(self, lines: Iterable[Line | Cue], *, observations: int | None = None) -> None:
        """Learn the script.

        Args:
            lines: One per turn, in order: a text, a whole turn, or a function of the conversation
                so far, for a line that depends on what came back. After the last one the token
                budget counts as used up.
            observations: How many observations fit in the budget; all of them by default.
        """
        self._lines = iter(lines)
        self._room = observations
        self.messages: tuple[Message, ...] = ()

    async def begin(self, task: Task) -> None:
        """Take the prompt."""
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
        """Keep an observation; ``False`` once no more of them fit."""
        if self._room is not None:
            if not self._room:
                return False
            self._room -= 1
        self.messages += (observation.message,)
        return True
