"""A real server for the tests of this folder, and small tools to look at processes."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from deepeyes_plugins.sandbox import (
    EmbeddedServer,
    SandboxClient,
    SandboxSession,
    SandboxSettings,
    start_server,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPEYES_SANDBOX_URL", "DEEPEYES_TOKEN_SANDBOX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A server with the default limits, but for a short grace and room for few images."""
    settings = SandboxSettings(interrupt_grace=0.5, memory_mb=512, max_images=3)
    with start_server(settings) as running:
        yield running


@pytest_asyncio.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[SandboxClient]:
    async with SandboxClient(server.url, token=server.token) as opened:
        yield opened


@pytest_asyncio.fixture
async def session(client: SandboxClient) -> AsyncIterator[SandboxSession]:
    async with await client.create_session() as opened:
        yield opened


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    image = Image.new("RGB", (width, height))
    image.putdata([(x % 256, y % 256, (x * y) % 256) for y in range(height) for x in range(width)])
    return image


def children(pid: int) -> set[int]:
    """Process ids of all live descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= new
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Looks again and again until the condition holds or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
