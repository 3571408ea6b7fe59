"""Children of the quickstart end with it, and their failures tell what to look at."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from deepeyes_plugins.quickstart.process import Process, StageError, model_servers, run

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_failure_names_the_command_and_shows_the_end_of_its_log(tmp_path: Path) -> None:
    script = "print('something useful'); raise SystemExit(3)"
    process = Process([sys.executable, "-c", script], tmp_path / "log", {"MARK": "a b"})
    with pytest.raises(StageError, match=r"(?s)MARK='a b' .*status 3.*something useful"):
        run([process], lambda: None, limit=60)


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", STUBBORN], tmp_path / "log")
    with pytest.raises(StageError, match="did not end within 3 seconds"):
        run([process], lambda: None, limit=3)
    child = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert not alive(child)


def test_an_interrupt_ends_the_command(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([process], interrupt, limit=60)
    assert process.wait(0)


def test_servers_are_up_inside_the_block_and_gone_behind_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER, "{port}"]
    with model_servers({tmp_path / "log": command, tmp_path / "log2": command}, {}) as urls:
        ports = {url.removeprefix("http://127.0.0.1:").removesuffix("/v1") for url in urls}
        assert len(ports) == 2
        assert all(httpx.get(url).is_success for url in urls)
    for url in urls:
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_a_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Also if that is killed, as by the scheduler of a cluster."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from deepeyes_plugins.quickstart.process import model_servers\n"
        "with model_servers({Path(sys.argv[1]): sys.argv[2:]}, {}) as (url,):\n"
        "    print(url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    server = [sys.executable, "-c", SERVER, "{port}"]
    command = [sys.executable, "-c", program, str(tmp_path / "log"), *server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(url).is_success
        process.kill()
    with pytest.raises(httpx.TransportError):
        while True:
            httpx.get(url)


def test_a_server_that_ends_ends_the_others(tmp_path: Path) -> None:
    commands = {
        tmp_path / "log": [sys.executable, "-c", SERVER, "{port}"],
        tmp_path / "log2": [sys.executable, "-c", "raise SystemExit", "{port}"],
    }
    with (
        pytest.raises(StageError, match=r"(?s)raise SystemExit.*did not answer"),
        model_servers(commands, {}),
    ):
        pass
