"""The trajectory log: one JSON line per trajectory, and a folder of images.

```
folder/trajectories.jsonl     append-only
folder/images/<sha256>.png    one file per distinct image
```
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from deepeyes_plugins.files import append_line, owner_only, owner_only_folder, whole_file
from deepeyes_plugins.protocol.actions import Action
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout.contracts import AssistantTurn, Environment, Step, Task
from deepeyes_plugins.rollout.trajectory import Trajectory

logger = logging.getLogger(__name__)

FILE_NAME = "trajectories.jsonl"
IMAGE_FOLDER = "images"

_BLOCK = 1 << 16
_EXIT_SECONDS = 10.0


class BackgroundWriter:
    """Writes files in order in a background thread, so that callers do not wait for the disk.

    The queue is bounded: if the disk is too slow, new writes are dropped and counted, with one
    warning until a write is accepted again. Failed writes are counted and reported in the same
    way. The thread starts with the first write.

    Example:
        writer = BackgroundWriter("trajectories")
        writer.submit(partial(log.write, trajectory, images), size=image_bytes)
    """

    def __init__(
        self, name: str, *, largest_count: int = 4096, largest_bytes: int = 256 << 20
    ) -> None:
        """Prepare a writer.

        Args:
            name: What is written, for warnings and the thread.
            largest_count: Maximum number of queued writes.
            largest_bytes: Maximum bytes of queued writes; a larger single one is accepted if the
                queue is empty.
        """
        self.name = name
        self._largest_count = largest_count
        self._largest_bytes = largest_bytes
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._bytes = 0
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._dropping = False
        self._failing = False
        self.written = 0
        self.dropped = 0
        self.failed = 0

    def submit(self, write: Callable[[], None], size: int = 0) -> bool:
        """Have ``write`` called soon; never waits and never raises.

        Args:
            write: Writes; its exceptions are counted in :attr:`failed`.
            size: Bytes that it holds in memory.

        Returns:
            ``False`` if it was dropped and counted in :attr:`dropped`.
        """
        with self._changed:
            too_large = self._bytes and self._bytes + size > self._largest_bytes
            if not too_large and len(self._waiting) < self._largest_count:
                self._waiting.append((write, size))
                self._bytes += size
                self._dropping = False
                if self._thread is None:
                    self._start()
                self._changed.notify_all()
                return True
            self.dropped += 1
            first, self._dropping = not self._dropping, True
        if first:
            logger.warning(
                "the disk is too slow for the %s: some are dropped (%d so far)",
                self.name,
                self.dropped,
            )
        return False

    def flush(self, timeout: float) -> bool:
        """Wait until everything submitted so far is written or has failed.

        Args:
            timeout: Maximum seconds to wait.

        Returns:
            ``False`` after the timeout.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"write {self.name}", daemon=True)
        self._thread.start()
        atexit.register(self.flush, _EXIT_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                write, size = self._waiting.popleft()
                self._busy = True
            try:
                write()
            except Exception as error:
                self.failed += 1
                level = logging.DEBUG if self._failing else logging.WARNING
                logger.log(level, "the %s cannot be written: %s", self.name, error)
                self._failing = True
            else:
                self.written += 1
                self._failing = False
            del write  # Free its memory before the next one.
            with self._changed:
                self._busy = False
                self._bytes -= size
                self._changed.notify_all()


class TrajectoryLog:
    """Appends trajectories to a folder; threads and processes may share it."""

    def __init__(self, folder: str | Path) -> None:
        """Log to ``folder``, which the first trajectory creates."""
        self.path = Path(folder) / FILE_NAME
        self._images = Path(folder) / IMAGE_FOLDER
        self._failing = False

    def append(self, trajectory: Trajectory, images: Iterable[EncodedImage] = ()) -> None:
        """Write one trajectory and its images.

        A failed write is only logged as a warning.
        """
        try:
            self.write(trajectory, images)
        except (OSError, ValueError) as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            logger.log(level, "the trajectory cannot be logged to %s: %s", self.path, error)
            self._failing = True
        else:
            self._failing = False

    def write(self, trajectory: Trajectory, images: Iterable[EncodedImage] = ()) -> None:
        """Write one trajectory and its images atomically.

        Raises:
            OSError: The folder cannot be written, for instance because the disk is full.
            ValueError: The trajectory cannot be serialized to JSON.
        """
        for folder in (self.path.parent, self._images):
            owner_only_folder(folder)
        for image in images:
            path = self._images / f"{image.sha256}.{image.media_type.rpartition('/')[2]}"
            if path.exists():
                owner_only(path)
            else:
                with whole_file(path, shared=True, private=True) as partial:
                    partial.write_bytes(image.data)
        append_line(self.path, trajectory.model_dump_json().encode())


def read_log(folder: str | Path) -> Iterator[Trajectory]:
    """Yield the trajectories of a log in order.

    Raises:
        ValueError: A line is not a trajectory; the message names file and line.
    """
    path = Path(folder) / FILE_NAME
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Trajectory.model_validate_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not a trajectory: {error}") from error


class RecordingEnvironment(Environment):
    """Wrapper of an environment that collects images, of which a trajectory has only hashes."""

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
        """Execute ``action`` and collect the images of its observation."""
        step = await self._environment.step(action)
        if step.observation is not None:
            self.images.extend(step.observation.message.images)
        return step

    async def close(self) -> None:
        """Release everything."""
        await self._environment.close()
