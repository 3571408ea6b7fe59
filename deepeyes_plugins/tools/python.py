"""The code action: one sandbox session per trajectory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model
from deepeyes_plugins.protocol.observations import MAXIMUM_IMAGES, code_observation
from deepeyes_plugins.rollout.contracts import InfrastructureError, Observation, Task, Tool
from deepeyes_plugins.sandbox.client import SandboxError, SandboxSession
from deepeyes_plugins.tools.resources import Resources


class PythonTool(Tool):
    """Runs Python in a live session that lasts as long as the trajectory."""

    name = "python"
    schema = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python source."}},
        "required": ["code"],
    }

    def __init__(self, resources: Resources) -> None:
        """Use the sandbox of ``resources``."""
        self._resources = resources
        self._session: SandboxSession | None = None

    async def open(self, task: Task) -> None:
        """Start the session with the task's images as ``image_1``, ``image_2``, …"""
        try:
            client = await self._resources.sandbox()
            self._session = await client.create_session([image.data for image in task.images])
        except SandboxError as error:
            raise InfrastructureError(f"the sandbox session cannot be opened: {error}") from error

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Run ``arguments["code"]``; the code's own failure is an observation with its stderr."""
        code = arguments.get("code")
        if not isinstance(code, str):
            reason = "the argument 'code' must be a string"
            return Observation(code_observation("", reason), error=reason)
        if self._session is None:
            raise InfrastructureError("the sandbox session is not open")
        try:
            result = await self._session.execute(
                code, timeout=self._resources.settings.sandbox.cell_timeout
            )
        except SandboxError as error:
            raise InfrastructureError(f"the sandbox failed: {error}") from error
        stdout = result.stdout
        if result.result:
            separator = "\n" if stdout and not stdout.endswith("\n") else ""
            stdout = f"{stdout}{separator}{result.result}"
        stderr = result.stderr
        images: list[EncodedImage] = []
        for data in result.images[:MAXIMUM_IMAGES]:
            try:
                images.append(await asyncio.to_thread(fit_for_model, EncodedImage(data)))
            except ImageError as error:
                stderr += f"\nA displayed image cannot be shown: {error}"
        error_text = None if result.outcome == "ok" else (result.error_name or result.outcome)
        return Observation(code_observation(stdout, stderr, images), error=error_text)

    async def close(self) -> None:
        """End the session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
