"""What is measured: each measure prepares a system, and then takes one sample after another."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from .pictures import difference, photo, size
from .systems import WANTED_SESSIONS, Failed, IPyKernel, NotOffered, Session, System

CONCURRENCY = 32
SIBLINGS = 15  # A prompt has sixteen rollouts.
OPENING_AT_ONCE = 16
GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Sample:
    """Result of one sample of a system.

    Attributes:
        figures: Key of a figure (see `figures.py`) to its value.
        details: More numbers, for the JSON file.
        note: One sentence to print.
    """

    figures: dict[str, float]
    details: dict[str, float] = field(default_factory=dict)
    note: str = ""


Sampler = Callable[[], Awaitable[Sample]]


@dataclass(frozen=True)
class Measure:
    """A way to take samples.

    Attributes:
        name: What `--only` takes.
        prepare: Opens what the samples of one system need.
        rounds: Samples that are taken of each system at most.
        seconds: Time after which a slow system need not give more than `fewest` samples.
        fewest: Samples that even the slowest system gives.
    """

    name: str
    prepare: Callable[[System, bool], AbstractAsyncContextManager[Sampler]]
    rounds: int
    seconds: float = 20.0
    fewest: int = 3


class Timer:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        """Starts."""
        self._start = time.perf_counter()

    def __call__(self) -> float:
        """Reads it."""
        return (time.perf_counter() - self._start) * 1000


async def check(session: Session, code: str, stdout: str = "", pictures: int = 0) -> list[bytes]:
    """Runs a cell that must print and show just that, and returns its pictures."""
    cell = await session.execute(code)
    if cell.error:
        raise Failed(cell.error.strip().splitlines()[-1])
    if cell.stdout.strip() != stdout:
        raise Failed(f"printed {cell.stdout[:60]!r} instead of {stdout!r}")
    if len(cell.images) != pictures:
        raise Failed(f"returned {len(cell.images)} pictures instead of {pictures}")
    return cell.images


@asynccontextmanager
async def opened(system: System, picture: bytes | None = None) -> AsyncIterator[Session]:
    """A session that is closed in the end."""
    session = await system.open(picture)
    try:
        yield session
    finally:
        await session.close()


def plot(number: int) -> str:
    """What trained models write most: a crop of the image, shown without axes."""
    left, top = 40 + 7 * number % 300, 30 + 5 * number % 200
    return (
        "import matplotlib.pyplot as plt\n"
        f"crop = image_1.crop(({left}, {top}, {left + 400}, {top + 300}))\n"
        "plt.imshow(crop)\n"
        "plt.axis('off')\n"
        "plt.show()\n"
    )


# Reads a pixel, so that a lazy image is decoded.
FIRST_LOOK = "print(len(image_1.getpixel((0, 0))))"


@asynccontextmanager
async def trivial(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """A trivial cell in a live session."""
    async with opened(system) as session:
        await check(session, "x = 41")
        await check(session, "print(x + 1)", "42")

        async def sample() -> Sample:
            elapsed = Timer()
            await check(session, "print(x + 1)", "42")
            return Sample({"trivial": elapsed()})

        yield sample


@asynccontextmanager
async def held(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """The same while the session holds 100 MB."""
    async with opened(system) as session:
        await check(session, "import numpy; x = 41; big = numpy.arange(100_000_000 // 8)")
        await check(session, "print(x + 1)", "42")

        async def sample() -> Sample:
            elapsed = Timer()
            await check(session, "print(x + 1)", "42")
            return Sample({"held": elapsed()})

        yield sample


def first_cell(megapixels: int) -> Callable[[System, bool], AbstractAsyncContextManager[Sampler]]:
    """New sessions, each with a new picture, until their first cell is done."""

    @asynccontextmanager
    async def prepare(system: System, quick: bool) -> AsyncIterator[Sampler]:
        seeds = itertools.count(1)

        async def sample() -> Sample:
            picture = photo(megapixels, next(seeds))
            elapsed = Timer()
            session = await system.open(picture)
            try:
                await check(session, FIRST_LOOK, "3")
                return Sample({f"image_{megapixels}": elapsed()})
            finally:
                await session.close()

        yield sample

    return prepare


def siblings(megapixels: int) -> Callable[[System, bool], AbstractAsyncContextManager[Sampler]]:
    """The 2nd to 16th session with a picture, while those before live."""

    @asynccontextmanager
    async def prepare(system: System, quick: bool) -> AsyncIterator[Sampler]:
        sessions: list[Session] = []
        picture = photo(megapixels, 0)

        async def sample() -> Sample:
            elapsed = Timer()
            session = await system.open(picture)
            sessions.append(session)
            await check(session, FIRST_LOOK, "3")
            return Sample({f"siblings_{megapixels}": elapsed()})

        try:
            await sample()
            yield sample
        finally:
            await _close_all(sessions)

    return prepare


@asynccontextmanager
async def plots(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """Later plots in a live session."""
    numbers = itertools.count(1)
    async with opened(system, photo(1, 0)) as session:
        await check(session, plot(0), pictures=1)

        async def sample() -> Sample:
            elapsed = Timer()
            await check(session, plot(next(numbers)), pictures=1)
            return Sample({"plot": elapsed()})

        yield sample


@asynccontextmanager
async def fidelity(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """Pictures of plots against those that a stock ipykernel gives for the same code."""
    numbers = itertools.count(0)
    stock = IPyKernel()
    async with opened(stock, photo(1, 0)) as expected, opened(system, photo(1, 0)) as session:

        async def sample() -> Sample:
            code = plot(next(numbers))
            [wanted] = await check(expected, code, pictures=1)
            [given] = await check(session, code, pictures=1)
            if size(wanted) != size(given):
                raise Failed(f"{size(given)} pixels, stock {size(wanted)}")
            return Sample({"fidelity": difference(wanted, given)})

        yield sample


async def _load(sessions: list[Session], plot_every: int, seconds: float) -> tuple[float, int]:
    """Keeps every session busy; returns cells per second and the number of failed cells."""
    done = errors = 0
    start = time.perf_counter()

    async def drive(session: Session, offset: int) -> None:
        nonlocal done, errors
        for number in itertools.count(offset):
            try:
                if number % plot_every == 0:
                    await check(session, plot(number), pictures=1)
                else:
                    await check(session, f"print(x + {number})", str(41 + number))
                done += 1
            except Exception:
                errors += 1
            if time.perf_counter() - start > seconds:
                return

    await asyncio.gather(*(drive(session, offset) for offset, session in enumerate(sessions)))
    return done / (time.perf_counter() - start), errors


# A picture that needs no transfer, for sessions that were opened without one.
PICTURE_BY_CODE = """
import numpy as np
from PIL import Image
x = 41
coarse = np.random.default_rng(0).integers(0, 255, (27, 36, 3), dtype=np.uint8)
image_1 = Image.fromarray(coarse).resize((1152, 864), Image.BICUBIC)
"""


async def _open_many(system: System, sessions: list[Session]) -> None:
    """Starts all sessions at once and waits for the first cell of each."""

    async def start() -> None:
        session = await system.open()
        sessions.append(session)
        await check(session, "print(1 + 1)", "2")

    # All have ended before the first failure is told, so that no session is left behind.
    ends = await asyncio.gather(*(start() for _ in range(CONCURRENCY)), return_exceptions=True)
    for error in ends:
        if isinstance(error, BaseException):
            raise error


async def _close_all(sessions: list[Session]) -> None:
    await asyncio.gather(*(session.close() for session in sessions))


@asynccontextmanager
async def burst(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """Many sessions started at once."""

    async def sample() -> Sample:
        sessions: list[Session] = []
        try:
            elapsed = Timer()
            await _open_many(system, sessions)
            return Sample({"burst": elapsed() / 1000})
        finally:
            await _close_all(sessions)

    yield sample


@asynccontextmanager
async def mixed(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """Many live sessions, all of them busy."""
    seconds = 1.5 if quick else 4.0
    sessions: list[Session] = []

    async def sample() -> Sample:
        rare, rare_errors = await _load(sessions, 10, seconds)
        often, often_errors = await _load(sessions, 2, seconds)
        figures = {"mixed_9_1": rare, "mixed_1_1": often}
        return Sample(figures | {"mixed_errors": float(rare_errors + often_errors)})

    try:
        await _open_many(system, sessions)
        # The first plot of a session loads fonts: not what is meant here.
        first = PICTURE_BY_CODE + plot(0)
        await asyncio.gather(*(check(session, first, pictures=1) for session in sessions))
        yield sample
    finally:
        await _close_all(sessions)


async def process_of(session: Session) -> psutil.Process:
    """The live process that runs a session's cells."""
    cell = await session.execute("import os\nprint(os.getpid())")
    try:
        return psutil.Process(int(cell.stdout))
    except (ValueError, psutil.NoSuchProcess):
        raise NotOffered("no process between two cells") from None


def unique_bytes(process: psutil.Process) -> int:
    """Memory that only this process has: private pages, clean and dirty."""
    return int(process.memory_full_info().uss)


@asynccontextmanager
async def memory(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """Memory that is a session's own."""

    async def sample() -> Sample:
        async with opened(system) as session:
            idle = unique_bytes(await process_of(session))
        async with opened(system, photo(1, 0)) as session:
            await check(session, plot(0), pictures=1)
            plotted = unique_bytes(await process_of(session))
        return Sample({"memory_idle": idle / MIB, "memory_plot": plotted / MIB})

    yield sample


@asynccontextmanager
async def capacity(system: System, quick: bool) -> AsyncIterator[Sampler]:
    """Idle sessions that live and answer, and the memory that they take."""

    def total() -> float:
        found = 0
        for process in system.processes():
            try:
                found += unique_bytes(process)
            except psutil.NoSuchProcess:
                continue
        return found / GIB

    async def sample() -> Sample:
        count = min(system.sessions, 64) if quick else system.sessions
        gate = asyncio.Semaphore(OPENING_AT_ONCE)
        sessions: list[Session] = []

        async def start(number: int) -> None:
            async with gate:
                session = await system.open()
                sessions.append(session)
                await check(session, f"x = {number}\nprint(x)", str(number))

        async def answers(session: Session) -> bool:
            async with gate:
                cell = await session.execute("print(x)")
                return not cell.error and cell.stdout.strip().isdigit()

        own, available = total(), psutil.virtual_memory().available / GIB
        before = len(system.processes())
        try:
            elapsed = Timer()
            await asyncio.gather(*(start(number) for number in range(count)))
            opening = elapsed() / 1000
            own = total() - own
            available -= psutil.virtual_memory().available / GIB
            processes = len(system.processes()) - before
            elapsed = Timer()
            answered = sum(await asyncio.gather(*(answers(session) for session in sessions)))
            answering = elapsed() / 1000
        finally:
            await _close_all(sessions)
            # The memory of sessions that are still ending must not be credited to the next system.
            ended = Timer()
            while len(system.processes()) > before and ended() < 60_000:
                await asyncio.sleep(0.1)
        if answered < count:
            raise Failed(f"only {answered} of {count} sessions answered")
        if processes < count:
            raise Failed(f"only {processes} processes for {count} sessions")
        # The larger of the two counts; within 8 GiB nothing is extrapolated.
        growth = max(own, available)
        measured = growth <= 8 and count >= WANTED_SESSIONS
        fit = count if measured else int(count * 8 / growth)
        return Sample(
            {"capacity": float(fit)},
            {
                "sessions": count,
                "processes": processes,
                "growth_unique_gib": own,
                "growth_machine_gib": available,
                "opening_seconds": opening,
                "answering_seconds": answering,
            },
            f"{count} idle sessions took {own:.2f} GiB of their own, {available:.2f} GiB of the "
            f"machine; opened in {opening:.1f} s, all answered again in {answering:.1f} s"
            + ("" if measured else f"; {fit} is what 8 GiB would hold at that rate"),
        )

    yield sample


def evicted(
    figure: str, setup: str
) -> Callable[[System, bool], AbstractAsyncContextManager[Sampler]]:
    """Evict a session and run a cell again, which restores it."""

    @asynccontextmanager
    async def prepare(system: System, quick: bool) -> AsyncIterator[Sampler]:
        if system.kind != "ours":
            raise NotOffered("no eviction")
        async with opened(system) as session:
            await check(session, setup)
            before = await process_of(session)

            async def sample() -> Sample:
                nonlocal before
                # Sessions that wake are not evicted a moment before: the one forked ahead is back.
                await asyncio.sleep(REFILL_SECONDS)
                elapsed = Timer()
                await session.evict()
                away = elapsed()
                await check(session, "print(x + 1)", "42")
                both = elapsed()
                after = await process_of(session)
                if after == before:
                    raise Failed("the session's process was never evicted")
                before = after
                return Sample({figure: both}, {"evict_ms": away, "restore_ms": both - away})

            yield sample

    return prepare


SMALL_NAMESPACE = """
x = 41
names = [f"name {i}" for i in range(100)]
table = {name: len(name) for name in names}
def double(value):
    return 2 * value
"""

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("trivial", trivial, rounds=100),
        Measure("held", held, rounds=50),
        Measure("image_1", first_cell(1), rounds=10),
        Measure("siblings_1", siblings(1), rounds=SIBLINGS),
        Measure("image_12", first_cell(12), rounds=5),
        Measure("siblings_12", siblings(12), rounds=SIBLINGS),
        Measure("plot", plots, rounds=30),
        Measure("fidelity", fidelity, rounds=5),
        Measure("burst", burst, rounds=3, fewest=1),
        Measure("mixed", mixed, rounds=3, seconds=60, fewest=1),
        Measure("memory", memory, rounds=3, fewest=1),
        Measure("capacity", capacity, rounds=1, fewest=1),
        Measure("evict_small", evicted("evict_small", SMALL_NAMESPACE), rounds=20),
        Measure("evict_image", evicted("evict_image", PICTURE_BY_CODE), rounds=20),
    )
}


@dataclass
class Found:
    """The samples of one figure of one system, and what is to be said of them."""

    samples: list[float] = field(default_factory=list)
    details: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    missing: str = ""
    failed: bool = False


REFILL_SECONDS = 0.2
"""In which a server forks ahead what the last sample has used up."""

PATIENCE_SECONDS = 180.0
"""For one sample, or the preparation: a system that hangs is reported, and the others continue."""

Results = dict[str, dict[str, Found]]
"""Figure to system to what was found."""


def describe(error: Exception) -> str:
    """An error in one short line."""
    text = " ".join(str(error).split())
    if not isinstance(error, NotOffered | Failed):
        text = f"{type(error).__name__}: {text}"
    return text[:200]


async def take(
    measure: Measure, systems: list[System], figures: list[str], *, rounds: int | None, quick: bool
) -> Results:
    """Samples all systems in turn, so that noise hits all of them alike.

    Args:
        measure: What to take.
        systems: Those to compare.
        figures: The keys of the figures that come out of it.
        rounds: Samples of each; the measure's own number without.
        quick: Whether a tenth is enough.
    """
    results: Results = {figure: {} for figure in figures}
    if rounds is None:
        rounds = max(measure.fewest, measure.rounds // 10) if quick else measure.rounds
    limit = measure.seconds / 4 if quick else measure.seconds
    turns = []
    try:
        for system in systems:
            turns.append(_Turn(system, measure, results))
            await turns[-1].prepare(quick)
        for number in range(rounds):
            first = number % len(turns)
            # Rotate, so that no system always runs after the slowest.
            for turn in turns[first:] + turns[:first]:
                if turn.spent < limit or number < measure.fewest:
                    await turn.sample()
    finally:
        for turn in turns:
            await turn.close()
    return results


class _Turn:
    """One system while one measure is taken."""

    def __init__(self, system: System, measure: Measure, results: Results) -> None:
        self._context: Any = None
        self._sampler: Sampler | None = None
        self._system = system
        self._measure = measure
        self._results = results
        self.spent = 0.0

    def _note(self, error: Exception) -> None:
        self._sampler = None
        for found in self._results.values():
            entry = found.setdefault(self._system.name, Found())
            entry.missing = describe(error)
            entry.failed = not isinstance(error, NotOffered)

    async def prepare(self, quick: bool) -> None:
        context = self._measure.prepare(self._system, quick)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._sampler = await context.__aenter__()
            self._context = context
        except Exception as error:
            self._note(error)

    async def sample(self) -> None:
        if self._sampler is None:
            return
        start = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                sample = await self._sampler()
        except Exception as error:  # One figure that fails must not lose the others.
            self._note(error)
            return
        self.spent += time.perf_counter() - start
        for figure, value in sample.figures.items():
            found = self._results[figure].setdefault(self._system.name, Found())
            found.samples.append(value)
            found.note = sample.note
            for name, detail in sample.details.items():
                found.details.setdefault(name, []).append(detail)

    async def close(self) -> None:
        if self._context is not None:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._context.__aexit__(None, None, None)
            except Exception as error:
                self._note(error)
