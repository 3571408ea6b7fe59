"""The code action: one sandbox session per trajectory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model
from deepeyes_plugins.protocol.observations import MAXIMUM_IMAGES, code_observation
from deepeyes_plugins.rollout.contracts import InfrastructureError, Observation, Task, Tool
from deepeyes_plugins.sandbox.client import SandboxSession
from deepeyes_plugins.sandbox.contracts import ExecutionResult, SandboxError
from deepeyes_plugins.tools.resources import Resources

_NEW_SESSION = "The next code block runs in a new session, in which only the images are loaded."


class PythonTool(Tool):
    """Runs Python in a session for the length of the trajectory.

    A lost session (killed by the code, or by a restart of its server) is replaced by a new one:
    immediately and silently if nothing has run in it, else at the next call.
    """

    name = "python"
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python source."}},
        "required": ["code"],
    }

    def __init__(self, resources: Resources) -> None:

        self._resources = resources
        self._images: list[bytes] = []
        self._session: asyncio.Future[SandboxSession] | None = None
        self._used = False

    async def open(self, task: Task) -> None:
        """Start the session; the task's images are ``image_1``, ``image_2`` and so on in it.

        Raises:
            InfrastructureError: The sandbox is unavailable or refuses an image.
        """
        try:
            upright = await asyncio.to_thread(lambda: [image.upright() for image in task.images])
        except ImageError as error:
            raise InfrastructureError(f"an image of task {task.id} is broken: {error}") from error
        self._images = [image.data for image in upright]
        await self._current_session()

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Run ``arguments["code"]``; an exception in the code is an observation with its stderr.

        Raises:
            InfrastructureError: The sandbox does not respond; the session is closed.
        """
        code = arguments.get("code")
        if not isinstance(code, str):
            reason = "the argument 'code' must be a string"
            return Observation(code_observation("", reason), error=reason)
        result = await self._run(code)
        stdout = result.stdout
        if result.result:
            separator = "\n" if stdout and not stdout.endswith("\n") else ""
            stdout = f"{stdout}{separator}{result.result}"
        stderr = result.stderr
        if result.outcome in ("killed", "lost"):
            await self.close()
            stderr = f"{stderr}\n{_NEW_SESSION}".lstrip()
        images: list[EncodedImage] = []
        for data in result.images[:MAXIMUM_IMAGES]:
            try:
                images.append(await asyncio.to_thread(fit_for_model, EncodedImage(data)))
            except ImageError as error:
                stderr += f"\nA displayed image cannot be shown: {error}"
        error_text = None if result.outcome == "ok" else (result.error_name or result.outcome)
        return Observation(
            code_observation(stdout, stderr, images),
            error=error_text,
            infrastructure=result.outcome == "lost" or result.error_name == "SandboxFailover",
        )

    async def close(self) -> None:
        """Close the session, even while it is being opened; silent if it is already gone."""
        session, self._session = self._session, None
        if session is None:
            return
        if self._resources.sandbox_gate.circuit.is_open:
            # The server is down; if it restarts, it closes idle sessions itself.
            session.cancel()
            return
        with contextlib.suppress(SandboxError, InfrastructureError):
            await (await session).close()

    async def _run(self, code: str) -> ExecutionResult:
        """Run a cell; retry it in a new session if the first cell of a session was lost."""
        for is_last in (False, True):
            session = await self._current_session()
            fresh, self._used = not self._used, True
            try:
                result = await self._execute(session, code)
            except InfrastructureError:
                await self.close()
                if fresh and not is_last:
                    continue
                raise
            if result.outcome != "lost" or not fresh or is_last:
                return result
            await self.close()
        raise AssertionError("unreachable: the last round returns or raises")

    async def _execute(self, session: SandboxSession, code: str) -> ExecutionResult:
        timeout = self._resources.settings.sandbox.cell_timeout
        try:
            return await self._resources.sandbox_gate.call(
                lambda: session.execute(code, timeout=timeout), repeatable=False
            )
        except SandboxError as error:
            raise InfrastructureError(f"the sandbox failed: {error}") from error

    async def _current_session(self) -> SandboxSession:
        # Shielded from cancellation of the caller, so that `close` can close the new session.
        if self._session is None or (self._session.done() and self._session.exception()):
            self._session = asyncio.ensure_future(self._new_session())
            self._used = False
        return await asyncio.shield(self._session)

    async def _new_session(self) -> SandboxSession:
        async def create() -> SandboxSession:
            if self._session is None:
                raise InfrastructureError("the tool was closed before its session was open")
            client = await self._resources.sandbox()
            return await client.create_session(self._images)

        try:
            return await self._resources.sandbox_gate.call(create, repeatable=True)
        except SandboxError as error:
            raise InfrastructureError(f"the sandbox session cannot be opened: {error}") from error
