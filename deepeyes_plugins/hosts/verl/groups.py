"""The trajectories of one prompt: which are kept, and whether enough are.

verl computes a group's advantage from the trajectories that it gets. A session that returns none
is simply missing from its group; one that raises fails the group: the asynchronous trainers then
replace all of it, the synchronous one goes on with what is there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Group:
    """Sessions of one prompt in this process."""

    started: int = 0
    kept: int = 0
    lost: int = 0


class Groups:
    """All groups that are being played. All sessions of a prompt are in one process."""

    def __init__(self, smallest: int) -> None:
        """Give up groups of which fewer than ``smallest`` trajectories are left."""
        self._smallest = smallest
        self._groups: dict[str, Group] = {}

    def enter(self, prompt: str) -> None:
        """A session begins. verl begins all sessions of a prompt before the first can end."""
        self._groups.setdefault(prompt, Group()).started += 1

    def leave(self, prompt: str, *, kept: bool) -> bool:
        """A session ends.

        Args:
            prompt: Name of the prompt.
            kept: It has a trajectory to train on.

        Returns:
            False for the last one of a group of which too few are left: it has to raise.
        """
        group = self._groups[prompt]
        group.kept += kept
        group.lost += not kept
        if group.kept + group.lost < group.started:
            return True
        del self._groups[prompt]
        return not group.lost or group.kept >= min(self._smallest, group.started)
