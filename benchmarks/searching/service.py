"""Measurements of the search service: overhead, response cache and request coalescing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import yaml

from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import TextSearchProvider
from deepeyes_plugins.search.providers.retriever import Retriever
from deepeyes_plugins.search.settings import SearchSettings

from .measures import Figure, Taken, measure

ENGINE = Path(__file__).with_name("engine.py")
WARM_UP = 50
EQUAL_QUERIES = 1000


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[str]:
    """A program that says where it listens, for as long as the context lasts."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"listens on (http://\S+)", line):
                yield found[1]
                return
        raise RuntimeError(f"{command} did not start: {''.join(said)}")
    finally:
        process.terminate()
        process.wait()


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[tuple[Search, TextSearchProvider, str]]:
    """A client of the service, the provider behind it, and the engine's URL."""
    with tempfile.TemporaryDirectory() as folder, running(str(ENGINE)) as engine:
        config = Path(folder) / "agent.yaml"
        search = {"provider": "retriever", "providers": {"retriever": {"url": engine}}}
        config.write_text(yaml.safe_dump({"search": search}))
        command = ("-m", "deepeyes_plugins.cli", "search", "serve", "--port", "0")
        with running(*command, "--config", str(config), XDG_CACHE_HOME=folder) as url:
            client, direct = Search(SearchSettings(url=url)), Retriever({"url": engine})
            try:
                yield client, direct, engine
            finally:
                await client.aclose()
                await direct.aclose()


async def timed(provider: TextSearchProvider, search: Search, text: str) -> float:
    """Milliseconds that a search takes."""
    query = search.query(text)
    started = time.perf_counter()
    found = await provider.search(query)
    elapsed = (time.perf_counter() - started) * 1000
    assert len(found.results) == query.count
    return elapsed


@measure(
    Figure("overhead", "new query, over the provider alone", "ms", 2),
    Figure("provider", "… the provider alone", "ms"),
)
async def overhead(quick: bool) -> Taken:
    """New queries, in turn by the service and by the provider directly."""
    async with service() as (search, direct, _):
        for number in range(WARM_UP):
            await timed(search.text, search, f"warm {number}")
            await timed(direct, search, f"warm {number}")
        alone, over = [], []
        for number in range(100 if quick else 1000):
            alone.append(await timed(direct, search, f"query {number}"))
            over.append(await timed(search.text, search, f"query {number}") - alone[-1])
    return Taken({"overhead": over, "provider": alone})


@measure(
    Figure("hit", "query with a cached response", "ms", 2),
    Figure("hits", "… answers at concurrency 16", "1/s", more_is_better=True),
)
async def hit(quick: bool) -> Taken:
    """A hundred queries again and again."""
    rounds = 1 if quick else 10
    async with service() as (search, _, engine):
        texts = [f"query {number}" for number in range(100)]
        for text in texts:
            await timed(search.text, search, text)
        samples = [await timed(search.text, search, text) for _ in range(rounds) for text in texts]

        async def ask(share: list[str]) -> None:
            for text in share:
                await timed(search.text, search, text)

        rates = []
        for _ in range(rounds):
            started = time.perf_counter()
            await asyncio.gather(*(ask(texts) for _ in range(16)))
            rates.append(16 * len(texts) / (time.perf_counter() - started))
        async with httpx.AsyncClient() as http:
            calls = (await http.get(f"{engine}/count")).json()
    return Taken({"hit": samples, "hits": rates}, {"calls_of_the_engine": calls})


@measure(
    Figure("equal", "1,000 equal queries at once: calls of the engine", "calls", 1),
    Figure("equal_seconds", "… until all are answered", "s"),
)
async def equal(quick: bool) -> Taken:
    """Equal queries at the same time, each time another one."""
    calls, seconds = [], []
    async with service() as (search, _, engine), httpx.AsyncClient() as http:
        for number in range(1 if quick else 5):
            before = (await http.get(f"{engine}/count")).json()
            started = time.perf_counter()
            text = f"equal {number}"
            await asyncio.gather(*(timed(search.text, search, text) for _ in range(EQUAL_QUERIES)))
            seconds.append(time.perf_counter() - started)
            calls.append((await http.get(f"{engine}/count")).json() - before)
    return Taken({"equal": calls, "equal_seconds": seconds})
