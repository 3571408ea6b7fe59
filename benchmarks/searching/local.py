"""The local index: a build by the command, and queries of its provider."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path

from deepeyes_plugins.search.contracts import SearchQuery
from deepeyes_plugins.search.providers.local import Local

from .corpus import queries, write_corpus
from .figures import Figure, percentile

CONCURRENCY = 16
QUERIES = 3000
_MIB = 1 << 20


def measure(folder: Path, passages: int) -> list[Figure]:
    """Build an index of ``passages`` and search it; what is in ``folder`` already is used again."""
    corpus, index = folder / f"corpus-{passages}.jsonl", folder / f"index-{passages}"
    if not corpus.exists():
        part = corpus.with_suffix(".part")
        write_corpus(part, passages)
        part.rename(corpus)
    figures = [] if (index / "manifest.json").exists() else _build(corpus, index)
    samples = asyncio.run(_queries(index))
    p50, p95 = percentile(samples, 0.5), percentile(samples, 0.95)
    return [
        *figures,
        Figure("query_p50", f"query, p50 at {CONCURRENCY} at once", "ms", p50, 15),
        Figure("query_p95", f"query, p95 at {CONCURRENCY} at once", "ms", p95, 40),
        Figure("query_memory", "memory of a process that queries", "MiB", _own_memory()),
    ]


def _build(corpus: Path, index: Path) -> list[Figure]:
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "search", "index", "build"]
    started = time.perf_counter()
    subprocess.run([*command, str(corpus), "-o", str(index), "--json"], check=True, stdout=-3)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file()) / _MIB
    return [
        Figure("build", "build of the index", "s", seconds, 900),
        Figure("build_memory", "memory of the build, at most", "MiB", memory, 3 * 1024),
        Figure("index_size", "index on disk", "MiB", size),
    ]


async def _queries(index: Path) -> list[float]:
    """Milliseconds of each query, asked by several askers, one after the other each."""
    provider = Local({"index": str(index)})
    waiting = iter(queries(QUERIES))
    samples: list[float] = []

    async def ask() -> None:
        for text in waiting:
            started = time.perf_counter()
            await provider.search(SearchQuery(text=text))
            samples.append((time.perf_counter() - started) * 1000)

    for text in queries(50, seed=2):  # Brings the index into the page cache.
        await provider.search(SearchQuery(text=text))
    await asyncio.gather(*(ask() for _ in range(CONCURRENCY)))
    await provider.aclose()
    return samples


def _own_memory() -> float:
    """Memory of this process without files that are only mapped, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(facts["RssAnon"].split()[0]) / 1024
