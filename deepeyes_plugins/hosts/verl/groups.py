"""Groups of rollouts: decides whether enough rollouts of a prompt succeeded.

verl computes a group's advantage from the trajectories that it receives. A session that returns
none is excluded from its group. A session that raises fails the group: the asynchronous trainers
then replace the whole group, the synchronous one continues with the remaining trajectories.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Group:
    """Session counts of one prompt in this process."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0


class Groups:
    """The running groups. All sessions of a prompt run in one process."""

    def __init__(self, min_size: int) -> None:
        """Discard groups with fewer than ``min_size`` successful rollouts."""
        self._min_size = min_size
        self._groups: dict[str, Group] = {}

    def enter(self, prompt: str) -> None:
        """Register a session. verl starts all sessions of a prompt before the first can finish."""
        self._groups.setdefault(prompt, Group()).started += 1

    def leave(self, prompt: str, *, succeeded: bool) -> bool:
        """Unregister a session.

        Args:
            prompt: Id of the prompt.
            succeeded: Whether the session has a trajectory to train on.

        Returns:
            ``False`` for the last session of a group with too few successful rollouts: the caller
            must raise.
        """
        group = self._groups[prompt]
        group.succeeded += succeeded
        group.failed += not succeeded
        if group.succeeded + group.failed < group.started:
            return True
        del self._groups[prompt]
        return not group.failed or group.succeeded >= min(self._min_size, group.started)
