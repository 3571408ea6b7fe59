"""A recording holds all that was answered, whatever happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepeyes_plugins.search.contracts import (
    SearchNotConfiguredError,
    SearchQuery,
    SearchResult,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.recording import Recorder, Recording, Replay, fields_of
from tests.full_disk import full_disk


class Talkative(TextSearchProvider):
    name = "talkative"

    async def search(self, query: SearchQuery) -> SearchResults:
        return SearchResults(results=(SearchResult(title=query.text, snippet="x" * 2000),))


async def test_a_full_disk_is_told_and_costs_no_line(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "run.jsonl"
    queries = [SearchQuery(text=f"panda {number}") for number in range(50)]
    with full_disk(path.parent, 1 << 16):
        recording = Recording(path, writable=True)
        recorder = Recorder(Talkative(), recording)
        answered = []
        with pytest.raises(SearchUnavailableError, match="cannot be recorded"):
            for query in queries:
                answered.append((query, await recorder.search(query)))
        recording.close()
    assert answered
    replay = Replay(Recording(path))
    for query, answer in answered:
        assert await replay.search(query) == answer
    await replay.aclose()


def test_one_process_writes_and_others_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = Recording(path, writable=True)
    first.add({**fields_of(SearchQuery(text="panda")), "answer": {}})
    with pytest.raises(
        SearchNotConfiguredError, match="another process is writing to the recording"
    ):
        Recording(path, writable=True)
    assert len(Recording(path)) == 1
    first.close()
    assert len(Recording(path, writable=True)) == 1
