"""Recording and replay of a run's search responses, so that an experiment is reproducible.

One JSON object a line: ``{"kind": "text", "query": {…}, "answer": {…}}``, or ``"refused": "why"``
instead of ``answer``; for images ``{"kind": "image", "image": sha256, "data_id": …, "count": …,
"answer": …}`` with thumbnails in base64. The first response to a query is used, also while
recording, so that equal queries of one run get equal responses.
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
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deepeyes_plugins.files import owner_only, owner_only_folder, read_json
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
from deepeyes_plugins.search.wire import IMAGE_RESULTS, normalized

logger = logging.getLogger(__name__)

Query = TypeVar("Query", SearchQuery, ImageQuery)
Response = TypeVar("Response", SearchResults, ImageResults)

Span = tuple[int, int]
"""Offset and length of a line in the file, in bytes."""


class Recording:
    """A recording file, with an index of its queries in memory."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Index the file.

        A truncated last line, left by a killed process, is dropped with a warning.

        Args:
            path: The file.
            writable: Create the file if it is missing, and allow :meth:`add`.

        Raises:
            SearchNotConfiguredError: The file or one of its lines cannot be read, or another
                process is writing to it.
        """
        self.path = path
        self._spans: dict[str, Span] = {}
        self._write_lock = threading.Lock()
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            if writable:
                owner_only_folder(path.parent)
                owner_only(path)
            self._descriptor = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise SearchNotConfiguredError(
                f"the recording {path} cannot be opened: {error}"
            ) from error
        if writable:
            try:
                # The lock is released when the process ends.
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._descriptor)
                raise SearchNotConfiguredError(
                    f"another process is writing to the recording {path}; use another file"
                ) from error
        self._end = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    logger.warning("%s:%d: dropped the last line, which is truncated", path, number)
                    break
                try:
                    key = _key_of(read_json(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise SearchNotConfiguredError(
                        f"{path}:{number}: not a line of a recording ({error!r})"
                    ) from error
                self._spans.setdefault(key, (self._end, len(line)))
                self._end += len(line)
        if writable:
            os.ftruncate(self._descriptor, self._end)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, fields: dict[str, Any]) -> bool:
        return _key_of(fields) in self._spans

    def get(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the recorded line of a query; ``None`` if there is none."""
        span = self._spans.get(_key_of(fields))
        if span is None:
            return None
        offset, length = span
        found: dict[str, Any] = read_json(os.pread(self._descriptor, length, offset))
        return found

    def add(self, fields: dict[str, Any]) -> None:
        """Write the line of a query, unless it is recorded already.

        Raises:
            OSError: The disk is full, for instance; the next line overwrites the incomplete one.
        """
        key = _key_of(fields)
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._write_lock:
            if key in self._spans:
                return
            written = os.pwrite(self._descriptor, line, self._end)
            if written < len(line):
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written")
            self._spans[key] = (self._end, len(line))
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


def fields_of(query: SearchQuery | ImageQuery) -> dict[str, Any]:
    """Return the fields of a line that identify a query."""
    if isinstance(query, SearchQuery):
        fields = normalized(query).model_dump(mode="json", exclude_defaults=True)
        return {"kind": "text", "query": fields}
    return {
        "kind": "image",
        "image": query.image.sha256,
        "data_id": query.data_id,
        "count": query.count,
    }


class ReplayOptions(BaseModel):
    """Options of the provider ``replay``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="The recording.")


class _Replay:
    """Base of the providers that replay a recording."""

    name = "replay"
    cacheable = False
    section: ClassVar[str]

    def __init__(self, options: Mapping[str, Any] | Recording) -> None:
        """Open the recording that the options name, or replay an open one.

        Raises:
            SearchNotConfiguredError: The recording cannot be read, or an option is wrong.
        """
        if not isinstance(options, Recording):
            path = read_options(f"{self.section}.{self.name}", ReplayOptions, options).path
            options = Recording(path.expanduser())
        self._recording = options

    async def _recorded(self, query: SearchQuery | ImageQuery) -> Any:
        fields = fields_of(query)
        line = await asyncio.to_thread(self._recording.get, fields)
        if line is None:
            raise NotRecordedError(
                f"replay: {self._recording.path} has no response to {json.dumps(fields)}; the "
                "recorded run made no such query"
            )
        if "refused" in line:
            raise QueryRefusedError(line["refused"])
        return line["answer"]

    async def check(self) -> str:
        """Return the number of recorded responses."""
        return f"{len(self._recording)} recorded responses in {self._recording.path}"

    async def aclose(self) -> None:
        """Close the recording."""
        self._recording.close()


class Replay(_Replay, TextSearchProvider):
    """Answers text searches from a recording only."""

    section = "providers"
    filters = FILTERS

    async def search(self, query: SearchQuery) -> SearchResults:
        """Return the recorded response."""
        return SearchResults.model_validate(await self._recorded(query))


class ImageReplay(_Replay, ImageSearchProvider):
    """Answers image searches from a recording only."""

    section = "image_providers"

    async def search(self, query: ImageQuery) -> ImageResults:
        """Return the recorded response."""
        return IMAGE_RESULTS.validate_python(await self._recorded(query))


class Recorder(Replay):
    """Records the responses of a text provider; recorded queries are answered from the file."""

    def __init__(self, provider: TextSearchProvider, recording: Recording) -> None:
        """Wrap ``provider``; it is not closed with this."""
        super().__init__(recording)
        self.name = provider.name
        self.filters = provider.filters
        self._ask = provider.search

    async def search(self, query: SearchQuery) -> SearchResults:
        """Return the recorded response; ask and record it first if there is none."""
        await _record(self._recording, query, self._ask, TypeAdapter(SearchResults))
        return await super().search(query)


class ImageRecorder(ImageReplay):
    """Records the responses of an image provider; recorded queries are answered from the file."""

    def __init__(self, provider: ImageSearchProvider, recording: Recording) -> None:
        """Wrap ``provider``; it is not closed with this."""
        super().__init__(recording)
        self.name = provider.name
        self._ask = provider.search

    async def search(self, query: ImageQuery) -> ImageResults:
        """Return the recorded response; ask and record it first if there is none."""
        await _record(self._recording, query, self._ask, IMAGE_RESULTS)
        return await super().search(query)


async def _record(
    recording: Recording,
    query: Query,
    ask: Callable[[Query], Awaitable[Response]],
    format: TypeAdapter[Response],
) -> None:
    fields = fields_of(query)
    if fields in recording:
        return
    try:
        found = await ask(query)
        answer = format.dump_python(found, mode="json", exclude_defaults=True, exclude={"kept"})
        outcome = {"answer": answer}
    except QueryRefusedError as error:
        outcome = {"refused": str(error)}
    try:
        await asyncio.to_thread(recording.add, {**fields, **outcome})
    except OSError as error:
        # Without this error, the response would be missing from the replay.
        raise SearchUnavailableError(f"the response cannot be recorded: {error}") from error
