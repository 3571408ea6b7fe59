"""The trajectory log: one JSON line per trajectory, and its images in a folder beside it.

```
folder/trajectories.jsonl     append-only
folder/images/<sha256>.png    one file per image, whichever trajectories show it
```
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepeyes_plugins.protocol.actions import Action
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout.contracts import AssistantTurn, Environment, Step, Task
from deepeyes_plugins.rollout.trajectory import Trajectory

logger = logging.getLogger(__name__)

FILE_NAME = "trajectories.jsonl"
IMAGE_FOLDER = "images"


class TrajectoryLog:
    """Appends trajectories to a folder; threads and processes may share it."""

    def __init__(self, folder: str | Path) -> None:
        """Log to ``folder``, which the first trajectory creates."""
        self.path = Path(folder) / FILE_NAME
        self._images = Path(folder) / IMAGE_FOLDER
        self._failing = False

    def append(self, trajectory: Trajectory, images: Iterable[EncodedImage] = ()) -> None:
        """Write one trajectory and its images.

        A log that cannot be written costs a warning, never the trajectory.
        """
        try:
            self._write(trajectory, images)
        except (OSError, ValueError) as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            logger.log(level, "the trajectory cannot be logged to %s: %s", self.path, error)
            self._failing = True
        else:
            self._failing = False

    def _write(self, trajectory: Trajectory, images: Iterable[EncodedImage]) -> None:
        self._images.mkdir(parents=True, exist_ok=True)
        for image in images:
            path = self._images / f"{image.sha256}.{image.media_type.rpartition('/')[2]}"
            if not path.exists():
                # Readers see a whole image or none.
                partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
                partial.write_bytes(image.data)
                partial.replace(path)
        line = trajectory.model_dump_json().encode() + b"\n"
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # lines longer than a pipe buffer may interleave
            file.write(line)


def read_log(folder: str | Path) -> Iterator[Trajectory]:
    """Yield the trajectories of a log in the order of their writing.

    Raises:
        ValueError: A line is no trajectory; file and line are named.
    """
    path = Path(folder) / FILE_NAME
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Trajectory.model_validate_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is no trajectory: {error}") from error


class RecordingEnvironment(Environment):
    """Another environment, whose images it keeps: a trajectory itself holds only their hashes."""

    def __init__(self, environment: Environment) -> None:
        """Wrap a fresh ``environment``."""
        self._environment = environment
        self.dialect = environment.dialect
        self.limits = environment.limits
        self.images: list[EncodedImage] = []

    def parse(self, turn: AssistantTurn) -> Action | None:
        """Return the action of ``turn``."""
        return self._environment.parse(turn)

    async def open(self, task: Task) -> None:
        """Prepare for ``task``."""
        await self._environment.open(task)

    async def step(self, action: Action) -> Step:
        """Carry out ``action`` and keep the images of its observation."""
        step = await self._environment.step(action)
        if step.observation is not None:
            self.images.extend(step.observation.message.images)
        return step

    async def close(self) -> None:
        """Release everything."""
        await self._environment.close()
