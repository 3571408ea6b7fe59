"""A run's answers in a file, so that an experiment can be repeated exactly.

One JSON object a line: ``{"kind": "text", "query": {…}, "answer": {…}}``, or ``"refused": "why"``
instead of an answer; for images ``{"kind": "image", "image": sha256, "data_id": …, "count": …,
"answer": …}`` with thumbnails in base64. The first answer to a query counts: while recording, too,
so that equal queries of one run get equal answers.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.search.contracts import (
    FILTERS,
    ImageQuery,
    ImageResults,
    ImageSearchProvider,
    NotRecordedError,
    QueryRefusedError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.settings import read_options
from deepeyes_plugins.search.wire import ImageResultsMessage, tidy

logger = logging.getLogger(__name__)

Place = tuple[int, int]
"""Offset and length of a line in the file, in bytes."""


class Recording:
    """The file: an index of its lines in memory, the answers on disk."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Read which queries the file has answers to.

        A last line that is cut short, as a killed process leaves it, is dropped with a warning.

        Args:
            path: The file.
            writable: Make it where it is missing, and add to it.

        Raises:
            SearchNotConfiguredError: It cannot be read, or a line of it cannot, or another process
                adds to it.
        """
        self.path = path
        self._places: dict[str, Place] = {}
        self._writing = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        try:
            if writable:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SearchNotConfiguredError(
                f"the recording {path} cannot be opened: {error}"
            ) from error
        if writable:
            try:
                # It ends with the process that holds it.
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._descriptor)
                raise SearchNotConfiguredError(
                    f"the recording {path} is being written by another process; give this one a "
                    "file of its own"
                ) from error
        self._end = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    logger.warning("%s:%d: the last line is cut short; dropped", path, number)
                    break
                try:
                    key = _key_of(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise SearchNotConfiguredError(
                        f"{path}:{number}: no line of a recording ({error!r})"
                    ) from error
                self._places.setdefault(key, (self._end, len(line)))
                self._end += len(line)
        if writable:
            os.ftruncate(self._descriptor, self._end)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, fields: dict[str, Any]) -> bool:
        return _key_of(fields) in self._places

    def get(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the whole line for a query, if there is one."""
        place = self._places.get(_key_of(fields))
        if place is None:
            return None
        found: dict[str, Any] = json.loads(os.pread(self._descriptor, place[1], place[0]))
        return found

    def add(self, fields: dict[str, Any]) -> None:
        """Write a line for a query that has none; it is in the file when this returns.

        Raises:
            OSError: The disk is full, or worse; the next line takes the place of this one.
        """
        key = _key_of(fields)
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            if key in self._places:
                return
            written = os.pwrite(self._descriptor, line, self._end)
            if written < len(line):
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written")
            self._places[key] = (self._end, len(line))
            self._end += len(line)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _key_of(fields: dict[str, Any]) -> str:
    if fields["kind"] == "text":
        parts = SearchQuery.model_validate(fields["query"]).model_dump_json()
    else:
        parts = json.dumps([fields["image"], fields["data_id"], fields["count"]])
    return hashlib.sha256(f"{fields['kind']}\0{parts}".encode()).hexdigest()


def text_fields(query: SearchQuery) -> dict[str, Any]:
    """The part of a line that names a text search."""
    return {"kind": "text", "query": tidy(query).model_dump(mode="json", exclude_defaults=True)}


def image_fields(query: ImageQuery) -> dict[str, Any]:
    """The part of a line that names a search by image."""
    return {
        "kind": "image",
        "image": query.image.sha256,
        "data_id": query.data_id,
        "count": query.count,
    }


Query = TypeVar("Query", SearchQuery, ImageQuery)


class _Played(Generic[Query]):
    """Looks an answer up, and says clearly what was not recorded."""

    name = "replay"
    cacheable = False

    def __init__(self, recording: Recording) -> None:
        """Answer from ``recording``."""
        self._recording = recording

    def _line(self, fields: dict[str, Any], what: str) -> Any:
        line = self._recording.get(fields)
        if line is None:
            raise NotRecordedError(
                f"replay: {self._recording.path} has no answer to {what}; it was not asked when "
                "the run was recorded"
            )
        if "refused" in line:
            raise QueryRefusedError(line["refused"])
        return line["answer"]

    async def check(self) -> str:
        """Tell how much was recorded."""
        return f"{len(self._recording)} recorded answers in {self._recording.path}"

    async def aclose(self) -> None:
        """Close the recording."""
        self._recording.close()


class ReplayOptions(BaseModel):
    """Options of the provider ``replay``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="The recording.")

    @classmethod
    def recording(cls, place: str, options: Mapping[str, Any]) -> Recording:
        """Open what the options name.

        Raises:
            SearchNotConfiguredError: It cannot be read, or an option is wrong.
        """
        return Recording(read_options(place, cls, options).path.expanduser())


class Replay(_Played[SearchQuery], TextSearchProvider):
    """Answers the text searches of a recording, and nothing else."""

    filters = FILTERS

    async def search(self, query: SearchQuery) -> SearchResults:
        """Give the answer that was recorded."""
        fields = text_fields(query)
        return SearchResults.model_validate(
            await asyncio.to_thread(self._line, fields, json.dumps(fields["query"]))
        )


class ImageReplay(_Played[ImageQuery], ImageSearchProvider):
    """Answers the image searches of a recording, and nothing else."""

    async def search(self, query: ImageQuery) -> ImageResults:
        """Give the answer that was recorded."""
        fields = image_fields(query)
        what = f"the image {query.image.sha256[:12]} ({query.data_id or 'no data id'})"
        answer = await asyncio.to_thread(self._line, fields, what)
        return ImageResultsMessage.model_validate(answer).answer()


def open_replay(options: Mapping[str, Any]) -> TextSearchProvider:
    """Make the provider of text search ``replay``.

    Raises:
        SearchNotConfiguredError: The recording cannot be read, or an option is wrong.
    """
    return Replay(ReplayOptions.recording("providers.replay", options))


def open_image_replay(options: Mapping[str, Any]) -> ImageSearchProvider:
    """Make the provider of image search ``replay``.

    Raises:
        SearchNotConfiguredError: The recording cannot be read, or an option is wrong.
    """
    return ImageReplay(ReplayOptions.recording("image_providers.replay", options))


class Recorder(TextSearchProvider):
    """Hands queries on and writes down what comes back; what is written is given again."""

    cacheable = False

    def __init__(self, provider: TextSearchProvider, recording: Recording) -> None:
        """Record what ``provider`` says; neither is closed with this."""
        self.name = provider.name
        self.filters = provider.filters
        self._ask = provider.search
        self._recording = recording
        self._replay = Replay(recording)

    async def search(self, query: SearchQuery) -> SearchResults:
        """Answer from the recording, or ask and write first."""

        async def ask() -> Any:
            found = await self._ask(query)
            return found.model_dump(mode="json", exclude_defaults=True, exclude={"kept"})

        await _record(self._recording, text_fields(query), ask)
        return await self._replay.search(query)


class ImageRecorder(ImageSearchProvider):
    """The same for searches by image."""

    cacheable = False

    def __init__(self, provider: ImageSearchProvider, recording: Recording) -> None:
        """Record what ``provider`` says; neither is closed with this."""
        self.name = provider.name
        self._ask = provider.search
        self._recording = recording
        self._replay = ImageReplay(recording)

    async def search(self, query: ImageQuery) -> ImageResults:
        """Answer from the recording, or ask and write first."""

        async def ask() -> Any:
            message = ImageResultsMessage.of(await self._ask(query))
            return message.model_dump(mode="json", exclude_defaults=True, exclude={"kept"})

        await _record(self._recording, image_fields(query), ask)
        return await self._replay.search(query)


async def _record(
    recording: Recording, fields: dict[str, Any], ask: Callable[[], Awaitable[Any]]
) -> None:
    if fields in recording:
        return
    try:
        outcome = {"answer": await ask()}
    except QueryRefusedError as error:
        outcome = {"refused": str(error)}
    try:
        await asyncio.to_thread(recording.add, {**fields, **outcome})
    except OSError as error:
        # Unrecorded, the answer would be missing from the replay.
        raise SearchUnavailableError(f"the answer cannot be recorded: {error}") from error
