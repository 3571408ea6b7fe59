"""A kernel provisioner that treats its kernels as if they ran on another machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo, write_connection_file
from jupyter_client.provisioning import KernelProvisionerBase


class ElsewhereProvisioner(KernelProvisionerBase):
    """Keeps files of its own, shares none with the server, and has no process id to tell."""

    _process: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def has_process(self) -> bool:
        return self._process is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        self._folder = tempfile.TemporaryDirectory(prefix="elsewhere-")
        self._file = str(Path(self._folder.name) / "connection.json")
        key = self.parent.session.key
        _, self.connection_info = write_connection_file(self._file, key=key)
        argv = [part.format(connection_file=self._file) for part in self.kernel_spec.argv]
        return await super().pre_launch(cmd=argv, **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        assert set(kwargs) == {"env"}, "what is meant for a local process does not concern this one"
        assert self._folder is not None
        self._process = subprocess.Popen(
            cmd,
            env=kwargs["env"] | {"IPYTHONDIR": self._folder.name},
            cwd=self._folder.name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self.connection_info | {"key": self.parent.session.key}

    async def poll(self) -> int | None:
        return None if self._process is None else self._process.poll()

    async def wait(self) -> int | None:
        while await self.poll() is None:
            await asyncio.sleep(0.02)
        process, self._process = self._process, None
        return None if process is None else process.returncode

    async def send_signal(self, signum: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signum)

    async def kill(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        if self._folder is not None:
            self._folder.cleanup()
