"""Many pieces of work: bounded, ended by the first error, resumed from what is on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import BaseModel

from deepeyes_plugins.jobs import FailureLimit, Ledger, ServiceLostError, work_through
from tests.rollout.test_log import files_end_at


class Note(BaseModel):
    """A result."""

    text: str


async def test_no_more_than_allowed_is_in_work_and_nothing_is_lost() -> None:
    running, most, three = 0, 0, asyncio.Barrier(3)

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await three.wait()
        running -= 1
        return item

    found = [result async for result in work_through(range(1, 49), work, concurrency=3)]
    assert sorted(found) == list(range(1, 49))
    assert most == 3


async def test_an_error_ends_everything_after_what_was_finished() -> None:
    async def work(item: int) -> int:
        if item == 3:
            raise OSError("full")
        return item

    found = []
    with pytest.raises(OSError, match="full"):
        async for result in work_through(range(1, 9), work, concurrency=1):
            found.append(result)
    assert found == [1, 2]


def test_a_full_disk_keeps_what_is_in_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "notes.jsonl", Note)
    ledger.append(Note(text="first"))
    with files_end_at(30), pytest.raises(OSError, match="File too large"):
        ledger.append(Note(text="second" * 9))
    with ledger.path.open("a") as file:
        file.write('{"text": "to')
    assert ledger.resume(lambda note: True) == [Note(text="first")]
    assert ledger.path.read_text() == '{"text":"first"}\n'


def test_failures_in_a_row_end_patience_and_a_success_restores_it() -> None:
    limit = FailureLimit(1)
    for _ in range(7):
        limit.fail("no server")
    limit.succeed()
    for _ in range(7):
        limit.fail("no server")
    with pytest.raises(ServiceLostError, match="8 consecutive failures, the last one: no server"):
        limit.fail("no server")
