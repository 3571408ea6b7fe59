"""The whole jail where the server is no root: each layer, and what it must stop."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from deepeyes_plugins.sandbox import SandboxClient, SandboxSession, SandboxSettings
from deepeyes_plugins.sandbox.kernels.fork import isolation

from .conftest import children
from .processes import PYTHON, ServerProcess, server_process
from .test_isolation import REFUSED

NOBODY = 65534
# The interpreter may lie below a folder that only root enters: so nobody may read, and only that.
AS_NOBODY = (
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
# Sessions have not even that right, so what they import must be there already.
WARM = ("multiprocessing.popen_fork", "encodings.idna")
SETTINGS = SandboxSettings(
    interrupt_grace=0.5, memory_mb=512, scratch_mb=8, file_mb=4, warm_modules=WARM
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server of a user without privileges: of this one, or of nobody."""
    folder = Path(tempfile.mkdtemp(prefix="unprivileged-"))
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        command = (*AS_NOBODY, *PYTHON)
    else:
        command = PYTHON
    try:
        environment = {"TMPDIR": str(folder)}
        with server_process(SETTINGS, command=command, environment=environment) as running:
            yield running
        assert not list(folder.iterdir())
    finally:
        shutil.rmtree(folder)


@pytest_asyncio.fixture
async def client(server: ServerProcess) -> AsyncIterator[SandboxClient]:
    async with SandboxClient(server.url) as opened:
        yield opened


async def test_every_layer_is_active(server: ServerProcess, client: SandboxClient) -> None:
    assert os.stat(f"/proc/{server.pid}").st_uid != 0
    health = await client.health()
    assert set(health.isolation) == set(isolation.LAYERS) and health.isolated, health.isolation


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED.keys())
async def test_refused(session: SandboxSession, code: str) -> None:
    result = await session.execute(code, timeout=10)
    assert result.outcome == "error", result
    assert result.error_name in ("PermissionError", "OSError", "ValueError"), result.stderr


async def test_no_capability_is_left(session: SandboxSession) -> None:
    code = "{l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapP', 'CapE'))}"
    assert (await session.execute(code, 10)).result == str({"0" * 16})


async def test_nothing_of_others_can_be_read(
    server: ServerProcess, session: SandboxSession
) -> None:
    pids = [server.pid, *children(server.pid)]
    code = (
        "import os\nfound = []\n"
        f"for pid in {pids}:\n"
        "    for place in ('mem', 'environ', 'maps', 'status'):\n"
        "        try: open(f'/proc/{pid}/{place}', 'rb').read(1)\n"
        "        except OSError: continue\n"
        "        if pid != os.getpid(): found.append((pid, place))\n"
        "found"
    )
    assert (await session.execute(code, 10)).result == "[]"


async def test_memory_time_and_disk_are_limited(session: SandboxSession) -> None:
    assert (await session.execute("bytearray(1 << 40)", 10)).error_name == "MemoryError"
    assert (await session.execute("while True: pass", 0.3)).outcome == "timeout"
    large = await session.execute("open('f', 'wb').write(bytes(5 << 20))", 10)
    assert large.error_name == "OSError" and "too large" in large.stderr
    fill = "for n in range(99): open(f'f{n}', 'wb').write(bytes(1 << 20))"
    assert (await session.execute(fill, 10)).error_name == "OSError"
    clear = "import os\nfor name in os.listdir(): os.remove(name)\nopen('f', 'w').write('room')"
    assert (await session.execute(clear, 10)).result == "4"


async def test_too_many_threads_end_the_session(session: SandboxSession) -> None:
    result = await session.execute(
        "import threading, time\nthreading.stack_size(1 << 15)\n"
        "while True: threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(1e-4)",
        30,
    )
    assert result.outcome == "killed" and "threads" in result.stderr


async def test_a_session_is_evicted_and_restored(
    server: ServerProcess, session: SandboxSession
) -> None:
    await session.execute("kept = [1, 2]; open('note', 'w').write('kept')", 10)
    answer = httpx.post(f"{server.url}/v1/sessions/{session.id}/evict", trust_env=False)
    assert answer.status_code == 204
    health = httpx.get(f"{server.url}/health", trust_env=False).json()
    assert health["stored"] == 1
    assert (await session.execute("kept, open('note').read()", 10)).result == "([1, 2], 'kept')"
