"""Verdicts that the processes of a machine share."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.judge.cache import VerdictCache, cache_key
from deepeyes_plugins.judge.contracts import Verdict
from tests.judge.scripts import YES
from tests.openai.server import Body, ChatServer, Reply


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.judge.asking", url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def verdicts_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)


def test_equal_answers_in_several_processes_make_one_call(tmp_path: Path) -> None:
    release = threading.Event()
    with ChatServer(lambda body: Reply(YES, until=release)) as server:
        processes = [start(server.url, tmp_path) for _ in range(4)]
        waiting = threading.Event()
        while not all(_shares(process, tmp_path) for process in processes):
            assert all(process.poll() is None for process in processes)
            waiting.wait(0.02)
        release.set()
        verdicts = [verdict for process in processes for verdict in verdicts_of(process)]
        # And one that comes later.
        verdicts += verdicts_of(start(server.url, tmp_path))

    assert len(server.requests) == 1
    assert len(verdicts) == 20
    assert all(verdict["correct"] for verdict in verdicts)
    assert sum(verdict["calls"] for verdict in verdicts) == 1


def _shares(process: subprocess.Popen[str], folder: Path) -> bool:
    """Whether a process has opened a file in ``folder``."""
    links = Path(f"/proc/{process.pid}/fd").glob("*")
    return any(_target(link).startswith(str(folder)) for link in links)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_a_process_that_dies_leaves_no_claim(tmp_path: Path) -> None:
    asked, release = threading.Event(), threading.Event()

    def script(body: Body) -> Reply:
        first = not asked.is_set()
        asked.set()
        return Reply(YES, until=release if first else None)

    with ChatServer(script) as server:
        dying = start(server.url, tmp_path)
        assert asked.wait(60)
        dying.kill()
        dying.communicate()
        verdicts = verdicts_of(start(server.url, tmp_path))
        release.set()

    assert len(server.requests) == 2
    assert all(verdict["correct"] for verdict in verdicts)


async def right() -> Verdict:
    return Verdict(True)


async def never() -> Verdict:
    raise AssertionError("asked for what is known")


async def test_a_broken_file_is_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "verdicts.sqlite").write_bytes(b"rubbish" * 1000)
    for ask in (right, never):
        cache = VerdictCache(10, tmp_path, 1)
        assert (await cache.verdict("aaaa", ask)).correct
        await cache.aclose()
    assert len(caplog.records) == 1
    assert len(list(tmp_path.glob("verdicts.broken-*"))) == 1


async def test_a_folder_that_cannot_be_made_costs_calls_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = VerdictCache(10, tmp_path / "file" / "folder", 1)
    with caplog.at_level(logging.WARNING):
        for key in ("aaaa", "bbbb"):
            assert (await cache.verdict(key, right)).correct
    await cache.aclose()
    assert len(caplog.records) == 1
    assert f"not shared in {tmp_path / 'file' / 'folder'}" in caplog.text


async def test_the_file_and_the_memory_have_a_size(tmp_path: Path) -> None:
    cache = VerdictCache(3, tmp_path, 1)
    for key in ("aaa1", "aaa2", "aaa3", "aaa4"):
        await cache.verdict(key, right)
    assert (await cache.verdict("aaa4", never)).cached
    await cache.aclose()

    later = VerdictCache(3, tmp_path, 1)
    await later.verdict("aaa5", right)  # The first addition of a process trims.
    await later.aclose()
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
        rows = connection.execute("SELECT key FROM verdicts ORDER BY at").fetchall()
    assert [key for (key,) in rows] == ["aaa3", "aaa4", "aaa5"]


async def test_caches_of_one_process_ask_once_too(tmp_path: Path) -> None:
    release = asyncio.Event()
    calls = 0

    async def ask() -> Verdict:
        nonlocal calls
        calls += 1
        await release.wait()
        return Verdict(True)

    caches = [VerdictCache(10, tmp_path, 60) for _ in range(2)]
    asking = [asyncio.create_task(cache.verdict("abcd", ask)) for cache in caches]
    while not calls:
        await asyncio.sleep(0.01)
    release.set()
    verdicts = await asyncio.gather(*asking)
    assert calls == 1
    assert sorted(verdict.cached for verdict in verdicts) == [False, True]
    for cache in caches:
        await cache.aclose()


def test_keys_do_not_run_into_each_other() -> None:
    assert cache_key("a", "bc") != cache_key("ab", "c")
    assert cache_key("a", "b") != cache_key("a", "b", "")
    assert cache_key("\ud800") != cache_key("?")
