"""Attempts to get out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepeyes_plugins.sandbox import EmbeddedServer, SandboxClient, SandboxSession
from deepeyes_plugins.sandbox.kernels.fork import isolation

from .conftest import children

REFUSED = {
    "read a file": "open('/etc/passwd').read()",
    "read a file of the user": "import os; os.listdir('/root')",
    "list the root": "import os; os.listdir('/')",
    "list other sessions": "import os; os.listdir('..')",
    "write outside": "open('/tmp/escaped', 'w')",
    "write a library": "import numpy; open(numpy.__file__, 'a')",
    "follow a link": "import os; os.symlink('/etc/passwd', 'l'); open('l')",
    "hard link": "import os; os.link('/etc/passwd', 'h')",
    "change modes": "import os; os.chmod('/etc/hostname', 0o777)",
    "change times": "import os; os.utime('/etc/hostname')",
    "change owner": "import os; os.chown('/etc/hostname', 1, 1)",
    "TCP": "import socket; socket.create_connection(('127.0.0.1', 80))",
    "UDP": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "datagram pair": "import socket; socket.socketpair(type=socket.SOCK_DGRAM)",
    "fork": "import os; os.fork()",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'])",
    "shell": "!true",
    "multiprocessing": "import multiprocessing as m; m.Process(target=print).start()",
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "kill all": "import os; os.kill(-1, 9)",
    "limit the parent": "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_CPU, (1, 1))",
    "trace the parent": "import os; open(f'/proc/{os.getppid()}/mem', 'rb')",
    "parent's environment": "import os; open(f'/proc/{os.getppid()}/environ', 'rb')",
    "raise limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))",
    "mount": "import ctypes, os; l = ctypes.CDLL(None, use_errno=True)\n"
    "if l.mount(b'none', b'.', b'tmpfs', 0, None): raise PermissionError(ctypes.get_errno())",
    "own namespace": "import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
    "if l.unshare(0x10000000): raise PermissionError(ctypes.get_errno())",
    "survive the parent": "import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
    "if l.prctl(1, 0, 0, 0, 0): raise PermissionError(ctypes.get_errno())",
    "signal by descriptor": "import fcntl, os; r, w = os.pipe()\n"
    "fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "memory outside the limit": "import os; os.memfd_create('m')",
    "shared memory of others": "import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
    "if l.shmctl(0, 14, ctypes.create_string_buffer(256)) < 0:\n"
    "    raise OSError(ctypes.get_errno(), 'shmctl')",
    "watch the files of others": "import ctypes, os; l = ctypes.CDLL(None, use_errno=True)\n"
    "if l.inotify_init1(0) < 0: raise PermissionError(ctypes.get_errno())",
    "mount table": "open('/proc/self/mountinfo')",
    "list of mounts": "open('/proc/mounts')",
    "connections of this machine": "open('/proc/net/tcp')",
    "local sockets of this machine": "import os; open(f'/proc/self/task/{os.getpid()}/net/unix')",
    "lease": "import fcntl, numpy\nwith open(numpy.__file__) as f:\n"
    "    fcntl.fcntl(f, 1024, fcntl.F_RDLCK)",
    "network interfaces": "import fcntl, socket\n"
    "fcntl.ioctl(socket.socketpair()[0], 0x8912, bytes(40))",
}


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED.keys())
async def test_refused(session: SandboxSession, code: str) -> None:
    result = await session.execute(code, timeout=10)
    assert result.outcome == "error", result
    assert result.error_name in ("PermissionError", "OSError", "ValueError"), result.stderr
    assert (await session.execute("1 + 1", timeout=10)).result == "2"


async def test_nothing_of_the_server_is_in_reach(session: SandboxSession) -> None:
    environment = await session.execute("import os; sorted(os.environ)", timeout=10)
    assert "TOKEN" not in environment.result and "PATH" in environment.result
    initial = await session.execute("open('/proc/self/environ').read()", timeout=10)
    assert initial.outcome == "error" or "TOKEN" not in initial.result
    code = (
        "import os\n"
        "[os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in os.listdir('/proc/self/fd')\n"
        " if os.path.islink(f'/proc/self/fd/{n}')]"
    )
    opened = await session.execute(code, timeout=10)
    assert eval(opened.result) == ["/dev/null"] * 3 + ["socket"]


async def test_no_capability_is_left(session: SandboxSession) -> None:
    result = await session.execute(
        "[line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')][1:3]",
        timeout=10,
    )
    assert result.result == str(["0" * 16] * 2)


async def test_large_files_are_refused(session: SandboxSession) -> None:
    result = await session.execute(
        "with open('big', 'wb') as f:\n    f.truncate(1 << 30)", timeout=10
    )
    assert result.error_name == "OSError" and "too large" in result.stderr


async def test_honest_work_is_not_hindered(session: SandboxSession) -> None:
    result = await session.execute(
        "import threading, tempfile, asyncio, json, decimal, sqlite3, zoneinfo\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import scipy.ndimage, pandas\n"
        "with ThreadPoolExecutor(4) as pool: total = sum(pool.map(abs, range(-9, 0)))\n"
        "with tempfile.TemporaryDirectory() as folder: open(folder + '/f', 'w').write('x')\n"
        "open('own.py', 'w').write('answer = 42')\n"
        "import own\n"
        "total, own.answer, sqlite3.connect('db').execute('select 1').fetchone()",
        timeout=60,
    )
    assert result.outcome == "ok", result.stderr
    assert result.result == "(45, 42, (1,))"


async def test_health_names_every_layer(client: SandboxClient) -> None:
    health = await client.health()
    assert set(health.isolation) == set(isolation.LAYERS)
    assert health.isolated and health.status == "ok"


def test_server_processes_hold_the_layers(server: EmbeddedServer) -> None:
    # The decoder and every session are filtered; the server and the zygote are not.
    modes = {}
    for pid in children(server.pid):
        status = Path(f"/proc/{pid}/status").read_text()
        modes[pid] = int(status.split("Seccomp:")[1].split()[0])
    assert sorted(set(modes.values()))[0] == 0 and list(modes.values()).count(0) == 1
    assert os.getpid() not in modes


def test_the_probe_knows_this_kernel() -> None:
    state = isolation.probe()
    assert isolation.missing(state) == {}
    assert isolation.missing(state | {"landlock": "no"}) == {"landlock": "no"}
