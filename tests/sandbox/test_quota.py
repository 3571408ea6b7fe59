"""The quota on files where sessions get no file system of their own, as in a plain container."""

from __future__ import annotations

import platform
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deepeyes_plugins.sandbox import SandboxClient, SandboxSession, SandboxSettings

from .conftest import eventually
from .processes import ServerProcess, server_process

# Makes the kernel refuse "unshare", as a container's filter does, then becomes the server.
WITHOUT_UNSHARE = """
import ctypes, struct, sys
from deepeyes_plugins.sandbox.kernels.fork.isolation import _MACHINES, _Program, _libc
unshare = {"x86_64": 272, "aarch64": 97}[sys.argv[1]]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, unshare), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
buffer = ctypes.create_string_buffer(program, len(program))
_libc.prctl(38, 1, 0, 0, 0)
number = _MACHINES[sys.argv.pop(1)].seccomp
assert not _libc.syscall(number, 1, 0, ctypes.byref(_Program(4, ctypes.addressof(buffer))))
from deepeyes_plugins.sandbox.__main__ import main
main()
"""
COMMAND = (sys.executable, "-c", WITHOUT_UNSHARE, platform.machine())
SETTINGS = SandboxSettings(interrupt_grace=0.5, scratch_mb=8, file_mb=4, spare_sessions=0)


@dataclass(frozen=True)
class House:
    """A server and the folder that it keeps its files in."""

    server: ServerProcess
    folder: Path

    def folders(self) -> list[Path]:
        """Those of sessions."""
        return list(self.folder.glob("deepeyes-sandbox-*/" + "[0-9a-f]" * 32))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("server")
    environment = {"TMPDIR": str(folder)}
    with server_process(SETTINGS, command=COMMAND, environment=environment) as server:
        yield House(server, folder)
    assert not list(folder.iterdir())


@pytest_asyncio.fixture
async def client(house: House) -> AsyncIterator[SandboxClient]:
    async with SandboxClient(house.server.url) as opened:
        yield opened


async def test_the_server_says_so(client: SandboxClient) -> None:
    health = await client.health()
    assert health.isolation["scratch_quota"].startswith("active, checked every 1 s (")
    assert health.isolated


async def test_few_files_are_within_the_quota(house: House, session: SandboxSession) -> None:
    code = "import time\nopen('kept', 'wb').write(bytes(1 << 20)); time.sleep(2.5)\n'done'"
    assert (await session.execute(code, 20)).result == "'done'"
    assert [path.name for path in house.folders()[0].iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "code",
    [
        "for n in range(9): open(f'f{n}', 'wb').write(bytes(2 << 20))",
        "import os\nheld = []\nfor n in range(9):\n"
        "    held.append(open('f', 'wb')); os.remove('f'); held[-1].write(bytes(2 << 20))",
        "for n in range(5000): open(f'f{n}', 'w').close()",
        "import os\nfor n in range(5000): os.mkdir(f'd{n}')",
    ],
    ids=["large", "removed but open", "many files", "many folders"],
)
async def test_too_many_files_end_the_session(
    house: House, session: SandboxSession, code: str
) -> None:
    result = await session.execute(code + "\nimport time; time.sleep(20)", 25)
    assert result.outcome == "killed"
    assert "more than 8 MiB of files" in result.stderr and "variables are gone" in result.stderr
    assert result.duration < 10
    assert eventually(lambda: not house.folders())
    assert (await session.execute("1", 10)).outcome == "lost"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor n in range(3000): os.mkdir('d'); os.chdir('d')",
        "import os\nos.mkdir('d', 0o300); open('d/f', 'w').close(); os.mkdir('e', 0)",
        "import os\nfor n in range(60):\n    os.mkdir('n' * 200); os.chdir('n' * 200)\n"
        "    open('f' * 200, 'w').close()",
    ],
    ids=["deep", "closed", "long"],
)
async def test_folders_of_any_kind_are_removed(
    house: House, client: SandboxClient, code: str
) -> None:
    async with await client.create_session() as session:
        assert (await session.execute(code, 20)).outcome == "ok"
        assert house.folders()
    assert eventually(lambda: not house.folders())
