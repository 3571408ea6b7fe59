"""Every kernel keeps the contract, and the suite notices one that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from deepeyes_plugins.sandbox import (
    ExecutionResult,
    SandboxClient,
    SandboxSettings,
    SandboxUnavailable,
    start_server,
)
from deepeyes_plugins.sandbox.kernels import make_provider
from deepeyes_plugins.sandbox.kernels.contract import KernelProvider
from deepeyes_plugins.testing import kernels as conformance
from deepeyes_plugins.testing.kernels import CHECKS, Check, check_provider

from .conftest import gradient, png
from .third_party_kernel import SubprocessKernel, SubprocessProvider

THIRD_PARTY = f"{SubprocessProvider.__module__}:make"
SETTINGS = SandboxSettings(max_images=3, memory_mb=512, allow_unisolated=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fork", "jupyter"])
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[KernelProvider]:
    made = make_provider(SETTINGS.model_copy(update={"kernel": request.param}))
    try:
        await made.start()
        yield made
    finally:
        await made.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=[name for name, _ in CHECKS])
async def test_kernels_that_ship_keep_the_contract(provider: KernelProvider, check: Check) -> None:
    await check(provider)


async def test_a_third_partys_kernel_keeps_the_contract() -> None:
    report = await check_provider(
        make_provider, SETTINGS.model_copy(update={"kernel": THIRD_PARTY})
    )
    assert report == dict.fromkeys(["start", *(name for name, _ in CHECKS), "close"])


async def test_a_third_partys_kernel_runs_behind_the_server() -> None:
    with start_server(SandboxSettings(kernel=THIRD_PARTY)) as server:
        async with SandboxClient(server.url, token=server.token) as client:
            async with await client.create_session([png(gradient(40, 30))]) as session:
                result = await session.execute("print(image_1.size)\nimage_1", timeout=30)
            health = await client.health()
    assert result.stdout == "(40, 30)\n" and len(result.images) == 1
    assert health.isolation == {"everything": "this kernel is an example"}


Change = Callable[[ExecutionResult], ExecutionResult]


def broken(change: Change) -> SubprocessProvider:
    """A provider whose kernels return altered results."""

    class Broken(SubprocessKernel):
        async def execute(self, code: str, timeout: float) -> ExecutionResult:
            return change(await super().execute(code, timeout))

    class Provider(SubprocessProvider):
        async def open(self, images: Any) -> SubprocessKernel:
            kernel = await super().open(images)
            kernel.__class__ = Broken
            return kernel

    return Provider(SETTINGS)


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (
            lambda result: replace(result, result=""),
            conformance.check_state_lives_from_cell_to_cell,
            "state is lost between cells",
        ),
        (
            lambda result: replace(result, stdout=result.stdout + result.result),
            conformance.check_last_expression,
            "stdout is not just what was printed",
        ),
        (
            lambda result: replace(result, stderr=f"\x1b[31m{result.stderr}\x1b[0m"),
            conformance.check_errors_are_plain_tracebacks,
            "the traceback has terminal codes",
        ),
        (
            lambda result: replace(result, stdout=result.stdout.replace("\\ud800", "\ud800")),
            conformance.check_any_text_can_be_printed,
            "a text of the result is not valid Unicode",
        ),
        (
            lambda result: replace(result, stderr=""),
            conformance.check_too_many_images_are_cut_visibly,
            "dropped images are not reported",
        ),
        (
            lambda result: replace(result, stdout="") if result.outcome == "timeout" else result,
            conformance.check_a_timeout_keeps_state_and_output,
            "partial output is lost",
        ),
        (
            lambda result: replace(result, outcome="timeout", stderr="gone"),
            conformance.check_a_dying_process_is_killed_then_lost,
            "the end of the process is not reported",
        ),
    ],
    ids=["state", "streams", "colours", "surrogates", "images", "timeout", "death"],
)
async def test_the_suite_fails_for_a_broken_kernel(
    change: Change, check: Check, message: str
) -> None:
    provider = broken(change)
    try:
        with pytest.raises(AssertionError, match=message):
            await check(provider)
    finally:
        await provider.close()


async def test_a_process_that_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "_REACTION_SECONDS", 1.0)

    class Careless(SubprocessKernel):
        async def close(self) -> None:
            self._closed = True

    class Provider(SubprocessProvider):
        async def open(self, images: Any) -> SubprocessKernel:
            kernel = await super().open(images)
            kernel.__class__ = Careless
            return kernel

        async def close(self) -> None:
            for kernel in self._kernels:
                await SubprocessKernel.close(kernel)

    provider = Provider(SETTINGS)
    try:
        with pytest.raises(AssertionError, match=r"process \d+ of the kernel is still running"):
            await conformance.check_close_leaves_no_process(provider)
    finally:
        await provider.close()


async def test_a_provider_that_cannot_start_is_reported_as_such() -> None:
    class Provider(SubprocessProvider):
        async def start(self) -> None:
            raise SandboxUnavailable("there is no disk")

    report = await check_provider(Provider, SETTINGS)
    assert report == {
        "start": "it raised an unexpected SandboxUnavailable: there is no disk",
        "close": None,
    }
