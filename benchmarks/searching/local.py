"""The local index: a build by the command, and queries of its provider.

The corpus stays in runs/benchmarks/search (550 MB for a million passages) and is used again.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deepeyes_plugins.search.contracts import SearchQuery
from deepeyes_plugins.search.providers.local import Local

from .corpus import queries, write_corpus
from .measures import Figure, Taken, measure

FOLDER = Path(__file__).parents[2] / "runs" / "benchmarks" / "search"
PASSAGES = 1_000_000
CONCURRENCY = 16


@measure(
    Figure("index_build", "index of 1,000,000 passages: build", "s", 900),
    Figure("index_build_memory", "… memory at most", "MiB", 3 * 1024),
    Figure("index_query", f"… query, {CONCURRENCY} at once", "ms", 15),
    Figure("index_query_tail", "… the same, 95th percentile", "ms", 40, share=0.95),
    Figure("index_memory", "… memory of a process that queries", "MiB"),
)
async def local(quick: bool) -> Taken:
    """Build an index and search it."""
    passages = PASSAGES // 10 if quick else PASSAGES
    corpus = FOLDER / f"corpus-{passages}.jsonl"
    if not corpus.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = corpus.with_suffix(".part")
        write_corpus(part, passages)
        part.rename(corpus)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        index = Path(folder) / "index"
        command = [sys.executable, "-m", "deepeyes_plugins.cli", "search", "index", "build"]
        started = time.perf_counter()
        built = subprocess.run(
            [*command, str(corpus), "-o", str(index), "--json"], check=True, capture_output=True
        )
        seconds = time.perf_counter() - started
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        before = anonymous_memory()
        samples = await ask_many(index, 300 if quick else 3000)
        grown = anonymous_memory() - before
    details = json.loads(built.stdout)
    return Taken(
        {
            "index_build": [seconds],
            "index_build_memory": [memory],
            "index_query": samples,
            "index_query_tail": samples,
            "index_memory": [grown],
        },
        {name: details[name] for name in ("passages", "bytes", "corpus_bytes", "library")},
    )


async def ask_many(index: Path, count: int) -> list[float]:
    """Milliseconds of each query; several askers put one after the other each."""
    provider = Local({"index": str(index)})
    for text in queries(50, seed=2):  # Loads the index into the page cache.
        await provider.search(SearchQuery(text=text))
    waiting = iter(queries(count))
    samples: list[float] = []

    async def ask() -> None:
        for text in waiting:
            started = time.perf_counter()
            await provider.search(SearchQuery(text=text))
            samples.append((time.perf_counter() - started) * 1000)

    await asyncio.gather(*(ask() for _ in range(CONCURRENCY)))
    await provider.aclose()
    return samples


def anonymous_memory() -> float:
    """Memory of this process in MiB, without files that are only mapped."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["RssAnon"].split()[0]) / 1024
