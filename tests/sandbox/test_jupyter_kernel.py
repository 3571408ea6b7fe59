"""What is special about kernels of Jupyter."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from deepeyes_plugins.sandbox import (
    SandboxClient,
    SandboxSettings,
    SandboxUnavailable,
    start_server,
)
from deepeyes_plugins.sandbox.kernels.contract import SnapshotFailed
from deepeyes_plugins.sandbox.kernels.fork.isolation import LAYERS
from deepeyes_plugins.sandbox.kernels.jupyter import JupyterKernel, JupyterProvider
from deepeyes_plugins.testing import kernels as conformance

from .conftest import children, decoded, encoded, eventually, gradient, png, running

ROOT = Path(__file__).parents[2]
SETTINGS = SandboxSettings(kernel="jupyter", max_images=3, allow_unisolated=True)


def settings(kernelspec: str) -> SandboxSettings:
    return SETTINGS.model_copy(update={"jupyter_kernelspec": kernelspec})


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a kernelspec where Jupyter looks for them."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    def installed(name: str, **fields: Any) -> None:
        launch = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
        folder = tmp_path / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": [sys.executable, *launch], "display_name": name, "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec | fields))

    return installed


@pytest.fixture
def elsewhere(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernelspec whose provisioner comes from another, really installed, distribution."""
    metadata = tmp_path / "elsewhere-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[jupyter_client.kernel_provisioners]\n"
        f"elsewhere = {__package__}.elsewhere:ElsewhereProvisioner\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install("far", metadata={"kernel_provisioner": {"provisioner_name": "elsewhere"}})
    return "far"


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[JupyterProvider]:
    async with started(SETTINGS) as made:
        yield made


@pytest_asyncio.fixture
async def kernel(provider: JupyterProvider) -> JupyterKernel:
    return await provider.open([])


@contextlib.asynccontextmanager
async def started(settings: SandboxSettings) -> AsyncIterator[JupyterProvider]:
    made = JupyterProvider(settings)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def value(kernel: JupyterKernel, expression: str) -> str:
    result = await kernel.execute(expression, 30)
    assert result.outcome == "ok", result.stderr
    return result.result


async def refusal(settings: SandboxSettings) -> str:
    provider = JupyterProvider(settings)
    try:
        with pytest.raises(SandboxUnavailable) as caught:
            await provider.start()
    finally:
        await provider.close()
    return str(caught.value)


async def test_it_isolates_nothing_and_wants_to_hear_that_this_is_meant() -> None:
    strict = SETTINGS.model_copy(update={"allow_unisolated": False})
    assert "and set allow_unisolated, or use the kernel 'fork'" in await refusal(strict)
    state = JupyterProvider(strict).isolation()
    assert set(state) == set(LAYERS)
    assert set(state.values()) == {"left to the provisioner of the kernelspec 'python3'"}


async def test_a_kernelspec_that_is_not_installed_is_told_with_those_that_are(
    install: Install,
) -> None:
    install("vision")
    sentence = await refusal(settings("vison"))
    assert sentence.startswith("there is no kernelspec 'vison'; installed are: ")
    assert "python3" in sentence and "vision" in sentence


async def test_a_provisioner_that_is_not_installed_is_told(install: Install) -> None:
    install("cluster", metadata={"kernel_provisioner": {"provisioner_name": "slurm"}})
    sentence = await refusal(settings("cluster"))
    assert "names the provisioner 'slurm', which is not installed here" in sentence


async def test_a_kernel_that_does_not_start_tells_what_it_said(install: Install) -> None:
    install("sick", argv=[sys.executable, "-c", "raise RuntimeError('no licence')"])
    assert "RuntimeError: no licence" in await refusal(settings("sick"))
    install("absent", argv=["/nowhere/python", "{connection_file}"])
    assert "/nowhere/python" in await refusal(settings("absent"))


async def test_only_the_kernelspec_adds_to_the_environment(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DEEPEYES_TOKEN_SANDBOX", "HF_TOKEN", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    install("vision", env={"TEAM": "vision", "MINE": "${HF_TOKEN}"})
    async with started(settings("vision")) as provider:
        kernel = await provider.open([])
        seen = await value(kernel, "import os\nos.environ['TEAM'], 'secret' in str(os.environ)")
    assert seen == "('vision', False)"


async def test_nothing_is_left_of_a_closed_kernel(
    provider: JupyterProvider, kernel: JupyterKernel
) -> None:
    files = await value(
        kernel,
        "import ipykernel, os, tempfile\nopen('note.txt', 'w').write('mine')\n"
        "[ipykernel.get_connection_file(), os.path.abspath('note.txt'), tempfile.mkdtemp()]",
    )
    detached = "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True).pid"
    pids = [int(await value(kernel, code)) for code in ("os.getpid()", detached)]
    paths = [Path(path) for path in json.loads(files.replace("'", '"'))]
    assert all(path.exists() for path in paths) and all(running(pid) for pid in pids)
    await kernel.close()
    assert not any(path.exists() for path in paths)
    assert eventually(lambda: not any(running(pid) for pid in pids))


async def test_a_dead_kernel_takes_what_it_started_with_it(kernel: JupyterKernel) -> None:
    detached = "import os, subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)"
    pid = int(await value(kernel, f"{detached}.pid"))
    result = await kernel.execute("print('last words', flush=True)\nos._exit(1)", 30)
    assert (result.outcome, kernel.alive) == ("killed", False)
    assert eventually(lambda: not running(pid))


async def test_a_start_that_is_given_up_leaves_nothing(provider: JupyterProvider) -> None:
    before = children(os.getpid())
    opening = asyncio.ensure_future(provider.open([]))
    while children(os.getpid()) == before:
        await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert children(os.getpid()) == before


async def test_closing_the_provider_ends_kernels_that_are_still_starting() -> None:
    async with started(SETTINGS) as provider:
        before = children(os.getpid())
        opening = [asyncio.ensure_future(provider.open([])) for _ in range(2)]
        while children(os.getpid()) == before:
            await asyncio.sleep(0.01)
        await provider.close()
        assert children(os.getpid()) == before
        refused = await asyncio.gather(*opening, return_exceptions=True)
        assert [type(error) for error in refused] == [SandboxUnavailable] * 2


async def test_a_kernel_of_another_language_runs_without_images(install: Install) -> None:
    module = f"{__package__}.echo_kernel"
    install(
        "echo",
        argv=[sys.executable, "-m", module, "-f", "{connection_file}"],
        language="echo",
        env={"PYTHONPATH": str(ROOT)},
    )
    async with started(settings("echo")) as provider:
        kernel = await provider.open([])
        result = await kernel.execute("hello", 30)
        assert (result.outcome, result.stdout, list(kernel.names)) == ("ok", "HELLO\n", [])
        failed = await kernel.execute("fail", 30)
        assert (failed.outcome, failed.error_name) == ("error", "Refusal")
        assert failed.stderr == "Refusal: no\n"
        image = png(gradient())
        digest = hashlib.sha256(image).hexdigest()
        await provider.add_image(digest, image)
        with pytest.raises(SandboxUnavailable, match="needs a Python kernel"):
            await provider.open([digest])


@pytest.mark.parametrize(
    "forgery",
    [
        "session.send(kernel.iopub_socket, 'stream', {'name': 'stdout', 'text': 5})",
        "session.pack = lambda part: pack({} if 'payload' in part else part)",
        "session.pack = lambda part: pack(wrong if 'payload' in part else part)",
        "session.key = b'another'",
    ],
    ids=["stream", "reply", "traceback", "signature"],
)
async def test_a_kernel_that_forges_messages_is_stopped(
    kernel: JupyterKernel, forgery: str
) -> None:
    code = (
        "kernel = get_ipython().kernel\nsession = kernel.session\npack = session.pack\n"
        f"wrong = {{'status': 'error', 'traceback': [5]}}\n{forgery}"
    )
    results = [await kernel.execute(code, timeout=30), await kernel.execute("1", timeout=30)]
    stopped = next(result for result in results if result.outcome == "killed")
    assert "broke its own connection" in stopped.stderr and not kernel.alive


async def test_a_cell_without_a_reply_is_an_error(kernel: JupyterKernel) -> None:
    await value(
        kernel,
        "x, kernel, count = 1, get_ipython().kernel, 0\n"
        "real = kernel.session.send\n"
        "def once(stream, message, *args, **kwargs):\n"
        "    global count\n"
        "    count += message == 'execute_reply'\n"
        "    if message != 'execute_reply' or count != 2:\n"
        "        return real(stream, message, *args, **kwargs)\n"
        "kernel.session.send = once",
    )
    result = await kernel.execute("print('said')", 30)
    assert (result.outcome, result.stdout) == ("error", "said\n")
    assert "interrupted before it replied" in result.stderr
    assert await value(kernel, "x") == "1"


async def test_images_have_the_8_bits_that_a_person_sees() -> None:
    """The kernel opens them with its own Pillow, which would turn 16 bits white."""
    ramp = Image.frombytes("I;16", (256, 1), bytes(level for n in range(256) for level in (n, n)))
    images = [encoded(ramp, "PNG"), encoded(gradient().quantize(8), "PNG")]
    digests = [hashlib.sha256(image).hexdigest() for image in images]
    async with started(SETTINGS) as provider:
        for image, digest in zip(images, digests, strict=True):
            await provider.add_image(digest, image)
        kernel = await provider.open(digests)
        pixels = "(image_1.mode, image_1.getpixel((128, 0)), image_2.mode)"
        assert await value(kernel, pixels) == "('L', 128, 'RGB')"
        await kernel.close()


async def test_images_that_were_not_used_for_long_make_room() -> None:
    async with started(SETTINGS.model_copy(update={"image_cache_mb": 1})) as provider:
        noise = [os.urandom(700 * 500 * 3) for _ in range(2)]
        images = [png(gradient(8, 8).resize((700, 500))), *map(_noisy, noise)]
        digests = [hashlib.sha256(image).hexdigest() for image in images]
        for digest, image in zip(digests, images, strict=True):
            await provider.add_image(digest, image)
        kernel = await provider.open([digests[2]])
        assert await value(kernel, "image_1.size") == "(700, 500)"
        with pytest.raises(Exception, match="2 images must be uploaded"):
            await provider.open(digests)


def _noisy(pixels: bytes) -> bytes:
    return png(Image.frombytes("RGB", (700, 500), pixels))


async def test_sessions_cannot_be_saved_and_that_is_said(
    provider: JupyterProvider, kernel: JupyterKernel
) -> None:
    assert not provider.restorable
    with pytest.raises(SnapshotFailed, match="cannot be saved"):
        await kernel.snapshot(1 << 20)
    assert "cannot be saved" in provider.notes()["sessions"]
    assert provider.notes()["kernelspec"] == "python3, started by local-provisioner"


async def test_images_reach_a_kernel_that_shares_no_files(elsewhere: str) -> None:
    async with started(settings(elsewhere)) as provider:
        assert provider.notes()["kernelspec"] == "far, started by elsewhere"
        await conformance.check_images_are_there_before_the_first_cell(provider)
        kernel = await provider.open([])
        assert "elsewhere-" in await value(kernel, "import os\nos.getcwd()")
        assert kernel.memory() == 0


@pytest.mark.parametrize(
    "check",
    [
        conformance.check_displayed_images_come_back,
        conformance.check_a_timeout_keeps_state_and_output,
        conformance.check_a_swallowed_interrupt_is_killed,
        conformance.check_a_dying_process_is_killed_then_lost,
        conformance.check_death_between_cells_is_noticed,
        conformance.check_close_ends_a_running_cell,
    ],
)
async def test_a_foreign_provisioner_keeps_the_contract(
    elsewhere: str, check: conformance.Check
) -> None:
    async with started(settings(elsewhere)) as provider:
        await check(provider)


async def test_it_runs_behind_the_server() -> None:
    picture = gradient(64, 48)
    with start_server(SETTINGS) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            session = await client.create_session([png(picture)])
            result = await session.execute(
                "import os\nprint(os.getpid())\nimage_1.crop((0, 0, 10, 12))", timeout=30
            )
            assert [decoded(image).size for image in result.images] == [(10, 12)]
            hanging = await session.execute("x = 1\nwhile True: pass", timeout=0.5)
            assert hanging.outcome == "timeout"
            assert (await session.execute("x", timeout=10)).result == "1"
            neighbour = await client.create_session()
            dying = await neighbour.execute("import os\nos._exit(1)", timeout=30)
            assert dying.outcome == "killed"
            assert (await neighbour.execute("1", timeout=10)).outcome == "lost"
            health = await client.health()
            assert not health.isolated and "python3" in health.isolation["seccomp"]
    assert eventually(lambda: not running(int(result.stdout)))


def test_the_server_refuses_it_unless_it_is_told_to() -> None:
    with pytest.raises(SandboxUnavailable, match="the jupyter kernel isolates nothing by itself"):
        start_server(SandboxSettings(kernel="jupyter"))
