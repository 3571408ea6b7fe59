"""The code action, in the real sandbox."""

from __future__ import annotations

import asyncio
import copy
import io
import os
import signal
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.rollout import InfrastructureError, Observation, Task
from deepeyes_plugins.sandbox.embedded import URL_VARIABLE, EmbeddedServer, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.python import PythonTool
from deepeyes_plugins.tools.resources import Resources
from tests.tools.conftest import TOKEN_VARIABLE

RED = EncodedImage.from_pil(Image.new("RGB", (60, 40), "red"))
BLUE = EncodedImage.from_pil(Image.new("RGB", (9, 9), "blue"))


def task(*images: EncodedImage) -> Task:
    return Task("task-1", (Message("user", (*images, "Which colour?")),))


@pytest.fixture
async def tool(resources: Resources) -> AsyncIterator[PythonTool]:
    python = PythonTool(resources)
    await python.open(task(RED, BLUE))
    yield python
    await python.close()


async def run(tool: PythonTool, code: str) -> Observation:
    return await tool.call({"code": code})


def text(observation: Observation) -> str:
    return observation.message.text


class TestWhatTheModelSees:
    async def test_streams(self, tool: PythonTool) -> None:
        observation = await run(tool, "import sys\nprint('out')\nprint('err', file=sys.stderr)")
        assert observation.parts == (
            "Code execution result:\nstdout:\n```\nout\n\n```\n\nstderr:\n```\nerr\n\n```",
        )
        assert observation.error is None

    async def test_the_value_of_the_last_expression_follows_the_output(
        self, tool: PythonTool
    ) -> None:
        assert "```\n2\n```" in text(await run(tool, "1 + 1"))
        assert "```\nout\n2\n```" in text(await run(tool, "print('out')\n1 + 1"))
        assert "```\nout\n2\n```" in text(await run(tool, "print('out', end='')\n1 + 1"))

    async def test_all_images_of_the_question_are_loaded(self, tool: PythonTool) -> None:
        observation = await run(tool, "image_1.size, image_2.size, image_2.getpixel((0, 0))[2]")
        assert "((60, 40), (9, 9), 255)" in text(observation)

    async def test_variables_live_as_long_as_the_trajectory(self, tool: PythonTool) -> None:
        await run(tool, "x = 41")
        assert "```\n42\n```" in text(await run(tool, "x + 1"))

    async def test_figures_come_back(self, tool: PythonTool) -> None:
        observation = await run(
            tool, "import matplotlib.pyplot as plt\nplt.imshow(image_1)\nplt.show()"
        )
        assert text(observation).endswith("Images:\n")
        (image,) = observation.message.images
        assert min(image.size) > 100

    async def test_a_tiny_crop_is_brought_to_a_size_that_the_model_takes(
        self, tool: PythonTool
    ) -> None:
        (image,) = (await run(tool, "image_1.crop((0, 0, 4, 40))")).message.images
        assert image.size == (32, 40)

    async def test_ten_images_at_most(self, tool: PythonTool) -> None:
        observation = await run(tool, "for _ in range(12):\n    display(image_2)")
        assert len(observation.message.images) == 10

    async def test_a_forged_image_is_told_and_never_reaches_the_policy(
        self, tool: PythonTool
    ) -> None:
        observation = await run(
            tool,
            "import io\n"
            "file = io.BytesIO()\n"
            "image_1.resize((200, 200)).save(file, 'PNG')\n"
            "from IPython.display import Image\n"
            "display(Image(data=file.getvalue()[:150], format='png'))",
        )
        assert not observation.message.images
        assert "image" in text(observation).split("stderr:")[1]

    async def test_control_strings_arrive_as_plain_text(self, tool: PythonTool) -> None:
        seen = text(await run(tool, "print('<|im_' + 'start|>', '<ima' + 'ge>', '\\ud800')"))
        assert "< |im_start|> < image> " in seen
        seen.encode()

    async def test_code_sees_the_pixels_that_the_model_sees(self, resources: Resources) -> None:
        """Of 16 bits, a palette, and transparent pixels, whose stored colour is black."""
        images = (
            Image.new("I;16", (40, 30), 0x8000),
            Image.new("RGB", (40, 30), "red").quantize(2),
            Image.new("RGBA", (40, 30), (0, 0, 0, 0)),
        )
        files = []
        for image in images:
            file = io.BytesIO()
            image.save(file, "PNG")
            files.append(EncodedImage(file.getvalue()))
        tool = PythonTool(resources)
        await tool.open(task(*files))
        seen = await run(
            tool,
            "[im.convert('RGB').getpixel((3, 3)) for im in (image_1, image_2, image_3)]",
        )
        await tool.close()
        assert "[(128, 128, 128), (255, 0, 0), (255, 255, 255)]" in text(seen)

    async def test_an_image_on_its_side_is_upright_in_the_sandbox(
        self, resources: Resources
    ) -> None:
        """The model sees it upright, so its coordinates must be those of the upright image."""
        exif = Image.Exif()
        exif[0x0112] = 6
        file = io.BytesIO()
        Image.new("RGB", (60, 40)).save(file, "JPEG", exif=exif)
        tool = PythonTool(resources)
        await tool.open(task(EncodedImage(file.getvalue())))
        assert "(40, 60)" in text(await run(tool, "image_1.size"))
        await tool.close()


class TestTheCodesOwnFailures:
    """They are the model's to mend: an observation with stderr, no failure of ours."""

    @pytest.mark.parametrize(
        ("code", "error"), [("1 / 0", "ZeroDivisionError"), ("x = = 1", "SyntaxError")]
    )
    async def test_exceptions(self, tool: PythonTool, code: str, error: str) -> None:
        observation = await run(tool, code)
        assert error in text(observation)
        assert observation.error == error
        assert not observation.infrastructure

    async def test_a_cell_that_does_not_finish(
        self, tool: PythonTool, resources: Resources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limited = resources.settings.sandbox.model_copy(update={"cell_timeout": 0.5})
        monkeypatch.setattr(
            resources, "settings", resources.settings.model_copy(update={"sandbox": limited})
        )
        await run(tool, "x = 1")
        observation = await run(tool, "while True: pass")
        assert "did not finish" in text(observation)
        assert observation.error
        assert not observation.infrastructure
        assert "```\n1\n```" in text(await run(tool, "x"))

    async def test_code_that_kills_its_session(self, tool: PythonTool) -> None:
        """The next cell runs in a new session, and the model knows it."""
        await run(tool, "x = 1")
        observation = await run(tool, "import os\nos._exit(1)")
        assert "new session" in text(observation)
        assert observation.error == "killed"
        assert not observation.infrastructure
        assert "(60, 40)" in text(await run(tool, "image_1.size"))
        assert (await run(tool, "x")).error == "NameError"

    @pytest.mark.parametrize("arguments", [{}, {"code": None}, {"code": ["print(1)"]}])
    async def test_wrong_arguments(self, tool: PythonTool, arguments: dict[str, object]) -> None:
        observation = await tool.call(arguments)
        assert observation.error == "the argument 'code' must be a string"
        assert "must be a string" in text(observation)


class TestFailuresOfOurs:
    async def test_no_server(self) -> None:
        nobody = AgentSettings(sandbox=SandboxSettings(url="http://127.0.0.1:9", patience=0))
        tool = PythonTool(Resources(nobody))
        with pytest.raises(InfrastructureError, match=r"http://127\.0\.0\.1:9"):
            await tool.open(task(RED))
        await tool.close()

    async def test_an_image_of_the_question_that_is_broken(self, resources: Resources) -> None:
        tool = PythonTool(resources)
        with pytest.raises(InfrastructureError, match="image of task task-1 is broken"):
            await tool.open(task(EncodedImage(b"no image")))
        await tool.close()

    async def test_a_session_that_was_lost_before_anything_ran_in_it(
        self, tool: PythonTool
    ) -> None:
        """Nothing is missing, so it is replaced and nobody is told."""
        await end_all_sessions_but_tell_nobody(tool)
        observation = await run(tool, "image_1.size")
        assert "(60, 40)" in text(observation)
        assert not observation.infrastructure

    async def test_a_session_that_was_lost(self, tool: PythonTool, resources: Resources) -> None:
        """For instance because its server was restarted, or it was idle for too long."""
        await run(tool, "x = 1")
        await end_all_sessions_but_tell_nobody(tool)
        observation = await run(tool, "x + 1")
        assert observation.infrastructure
        assert observation.error == "lost"
        assert "new session" in text(observation)
        assert (await run(tool, "image_1.size")).error is None

    async def test_a_server_that_is_killed_and_comes_back(
        self, sandbox_server: EmbeddedServer
    ) -> None:
        """Who needs it meanwhile waits for it; only the variables are lost."""
        settings = SandboxSettings(
            token_env=TOKEN_VARIABLE, circuit_failures=1, circuit_seconds=0.1
        )
        server = start_server(settings)
        shared = Resources(AgentSettings(sandbox=settings.model_copy(update={"url": server.url})))
        tool = PythonTool(shared)
        await tool.open(task(RED))
        await run(tool, "x = 1")
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        with pytest.raises(InfrastructureError, match="the sandbox failed"):
            await run(tool, "x")
        waiting = asyncio.ensure_future(run(tool, "image_1.size"))
        port = int(server.url.rpartition(":")[2])
        with await asyncio.to_thread(start_server, settings, port=port):
            observation = await waiting
            assert "(60, 40)" in text(observation)
            assert not observation.infrastructure
            await tool.close()
            assert (await (await shared.sandbox()).health()).sessions == 0
        await shared.aclose()


class TestSessionsDoNotLeak:
    async def sessions(self, resources: Resources) -> int:
        return (await (await resources.sandbox()).health()).sessions

    async def test_close_ends_the_session(self, resources: Resources) -> None:
        before = await self.sessions(resources)
        tool = PythonTool(resources)
        await tool.open(task(RED))
        assert await self.sessions(resources) == before + 1
        await tool.close()
        await tool.close()
        assert await self.sessions(resources) == before

    async def test_also_when_the_opening_was_cancelled(self, resources: Resources) -> None:
        """An answer on the first turn does not wait until the session is there."""
        before = await self.sessions(resources)
        for steps in range(1, 30):
            tool = PythonTool(resources)
            opening = asyncio.ensure_future(tool.open(task(RED)))
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await tool.close()
        assert await self.sessions(resources) == before

    async def test_a_tool_that_was_never_opened_can_be_closed(self, resources: Resources) -> None:
        await PythonTool(resources).close()


async def test_without_a_url_a_server_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL_VARIABLE, "DEEPEYES_TOKEN_SANDBOX"):
        monkeypatch.setenv(name, "set, so that it is restored afterwards")
        monkeypatch.delenv(name)
    resources = Resources(AgentSettings())
    tool = PythonTool(resources)
    await tool.open(task(RED))
    assert "```\n2\n```" in text(await run(tool, "1 + 1"))
    await tool.close()
    await resources.aclose()


async def end_all_sessions_but_tell_nobody(tool: PythonTool) -> None:
    """End the tool's session at the server, behind the tool's back."""
    await copy.copy(await tool._current_session()).close()


async def test_a_server_that_died_is_replaced_by_the_one_that_is_found_now() -> None:
    settings = SandboxSettings(circuit_failures=1, circuit_seconds=0.05, patience=60)
    with start_server(settings) as first, start_server(settings) as second:
        urls = [first.url]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(settings.token_env, first.token)
            shared = Resources(AgentSettings(sandbox=settings), find_sandbox=lambda _: urls[-1])
            before = PythonTool(shared)
            await before.open(task(RED))
            assert "(60, 40)" in text(await run(before, "image_1.size"))

            first.close()
            urls.append(second.url)
            environment.setenv(settings.token_env, second.token)
            after = PythonTool(shared)
            await after.open(task(BLUE))
            assert "(9, 9)" in text(await run(after, "image_1.size"))
            for tool in (before, after):
                await tool.close()
            await shared.aclose()
