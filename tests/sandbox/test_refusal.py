"""A kernel that cannot isolate."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]

# Makes the kernel answer "no such system call" to Landlock, as one without it does, then becomes
# the server.
WITHOUT_LANDLOCK = """
import ctypes, struct, sys
from deepeyes_plugins.sandbox.kernels.fork.isolation import _MACHINES, _Program, _libc
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
buffer = ctypes.create_string_buffer(program, len(program))
_libc.prctl(38, 1, 0, 0, 0)
number = _MACHINES[sys.argv.pop(1)].seccomp
assert not _libc.syscall(number, 1, 0, ctypes.byref(_Program(4, ctypes.addressof(buffer))))
from deepeyes_plugins.sandbox.__main__ import main
main()
"""


def command(settings: str, descriptor: int) -> list[str]:
    options = ["--port", "0", "--settings", settings, "--announce-fd", str(descriptor)]
    return [sys.executable, "-c", WITHOUT_LANDLOCK, platform.machine(), *options]


def test_the_server_refuses_to_start() -> None:
    done = subprocess.run(command("{}", -1), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "cannot isolate untrusted code (landlock: this kernel has no Landlock" in done.stderr
    assert "allow_unisolated" in done.stderr


@pytest.mark.parametrize("settings", ['{"allow_unisolated": true}'])
def test_unless_it_is_told_to(settings: str) -> None:
    reading, writing = os.pipe()
    with (
        open(reading, encoding="utf-8") as announcement,
        subprocess.Popen(
            command(settings, writing), cwd=ROOT, pass_fds=[writing], stderr=subprocess.DEVNULL
        ) as server,
    ):
        os.close(writing)
        port = httpx.Response(200, content=announcement.readline()).json()["port"]
        try:
            health = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json()
            assert "no Landlock" in health["isolation"]["landlock"]
            assert health["isolation"]["seccomp"] == "active"
        finally:
            server.terminate()
