"""Conformance tests for kernels of the sandbox: checks of a custom ``KernelProvider``.

All checks, as a report:

    report = await check_provider(MyProvider, SandboxSettings(kernel="my_package:MyProvider"))
    # name of the check -> None, or what is wrong

or each check as a test, with a started provider:

    @pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=[n for n, _ in CHECKS])
    async def test_my_kernel(provider, check):
        await check(provider)

Each check opens its own sessions and has a time limit. The code of the cells is Python and uses
Pillow. The settings must allow fewer than 30 images and 500,000 characters per cell, and an
``interrupt_grace`` of a few seconds. The end of a process is checked in /proc, for kernels in the
same PID namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, get_args

from PIL import Image

from deepeyes_plugins.sandbox.contracts import ExecutionResult, Outcome
from deepeyes_plugins.sandbox.kernels.contract import (
    ImageRejected,
    ImagesMissing,
    Kernel,
    KernelProvider,
    Snapshot,
    SnapshotFailed,
)
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.testing.verdict import failure

Check = Callable[[KernelProvider], Awaitable[None]]

_CELL_SECONDS = 60.0
# Includes an interrupt, the grace period, and the end of a process.
_REACTION_SECONDS = 20.0
_CHECK_SECONDS = 240.0
_MAX_CHARACTERS = 500_000
_MANY_IMAGES = 30
_PNG = b"\x89PNG\r\n\x1a\n"


async def check_provider(
    make_provider: Callable[[SandboxSettings], KernelProvider], settings: SandboxSettings
) -> dict[str, str | None]:
    """Start a provider, run all checks on it, and close it.

    Args:
        make_provider: Makes the provider from the settings, as ``SandboxSettings.kernel`` names it.
        settings: Limits of the sessions.

    Returns:
        Name of the check to None if it passes, else to what is wrong. If the provider does not
        start, the checks do not run.
    """
    provider = make_provider(settings)
    report = {"start": await failure(provider.start(), settings.startup_timeout)}
    try:
        if report["start"] is None:
            for name, check in CHECKS:
                report[name] = await failure(check(provider), _CHECK_SECONDS)
    finally:
        closing = _end_of(provider) if report["start"] is None else provider.close()
        report["close"] = await failure(closing, _CHECK_SECONDS)
    return report


async def _end_of(provider: KernelProvider) -> None:
    """Check that closing a provider ends its sessions."""
    try:
        kernel = await provider.open([])
        pid = await _process(kernel)
    finally:
        await provider.close()
    await _expect_soon(lambda: not kernel.alive, "a kernel outlives its closed provider")
    await _expect_gone(pid)


def _in_session(check: Callable[[Kernel], Awaitable[None]]) -> Check:
    """Turn a check of a kernel into one of a provider, which opens a session for it."""

    @functools.wraps(check)
    async def check_in_session(provider: KernelProvider) -> None:
        async with _session(provider) as kernel:
            await check(kernel)

    return check_in_session


@_in_session
async def check_state_lives_from_cell_to_cell(kernel: Kernel) -> None:
    """Variables, imports, functions, generators and files persist from cell to cell."""
    await _ok(
        kernel,
        "import math\nradius = 2\ndef area(): return math.pi * radius ** 2\n"
        "numbers = iter(range(9)); next(numbers)\n"
        "note = open('note.txt', 'w+'); note.write('kept')",
    )
    await _ok(kernel, "radius = 3")
    code = "note.seek(0); round(area(), 2), next(numbers), note.read()"
    await _ok(kernel, code, "state is lost between cells", result="(28.27, 1, 'kept')")


@_in_session
async def check_last_expression(kernel: Kernel) -> None:
    """The value of the last expression is returned as text, separate from stdout."""
    result = await _ok(kernel, "print('printed')\n6 * 7")
    _expect(result.result == "42", "the last expression's value is not the result", result)
    _expect(result.stdout == "printed\n", "stdout is not just what was printed", result)
    silent = not result.stderr and not result.images
    _expect(silent, "there is output that the cell did not write", result)
    for code in ("None", "x = 1", "x;", "", "# nothing"):
        await _ok(kernel, code, f"{code!r} has a result, but no value", result="")


@_in_session
async def check_standard_error_and_warnings(kernel: Kernel) -> None:
    """Text on stderr and warnings are returned, and do not make the cell an error."""
    code = "import sys, warnings\nprint('out')\nprint('err', file=sys.stderr)\n"
    result = await _ok(kernel, code + "warnings.warn('careful')")
    _expect(result.stdout == "out\n", "stdout is not just what was printed", result)
    _expect("err\n" in result.stderr, "stderr is not returned", result)
    _expect("careful" in result.stderr, "a warning is not in stderr", result)


@_in_session
async def check_errors_are_plain_tracebacks(kernel: Kernel) -> None:
    """An exception results in ``error``, with its name and a plain-text traceback."""
    code = "def half(x):\n    return x / 0\nprint('before')\nhalf(1)"
    result = await _error(kernel, code, "ZeroDivisionError")
    _expect(result.stdout == "before\n", "output before the error is lost", result)
    for part in ("Traceback (most recent call last)", "half", "division by zero"):
        _expect(part in result.stderr, f"the traceback lacks {part!r}", result)
    result = await _ok(kernel, "half")
    _expect("half" in result.result, "the session does not continue after an error", result)


@_in_session
async def check_syntax_errors_say_where(kernel: Kernel) -> None:
    """Code that does not compile results in ``error`` with the line number; none of it runs."""
    result = await _error(kernel, "print('no')\ndef f(:\n    pass", "SyntaxError")
    _expect("line 2" in result.stderr, "the line number is missing", result)
    _expect(result.stdout == "", "part of the cell ran", result)


@_in_session
async def check_a_raising_repr_is_an_error(kernel: Kernel) -> None:
    """An exception in the last expression's ``__repr__`` is the cell's error."""
    code = "class Odd:\n    def __repr__(self): raise ValueError('no repr')\nOdd()"
    result = await _error(kernel, code, "ValueError")
    _expect("no repr" in result.stderr, "the error's message is lost", result)


@_in_session
async def check_exit_ends_the_cell_only(kernel: Kernel) -> None:
    """``sys.exit()`` does not end the session."""
    await _run(kernel, "kept = 1\nimport sys\nsys.exit(3)")
    await _ok(kernel, "kept", "sys.exit() ended the session", result="1")


@_in_session
async def check_top_level_await(kernel: Kernel) -> None:
    """``await`` works at the top level, as in a notebook."""
    code = "import asyncio\nawait asyncio.sleep(0, 'awaited')"
    await _ok(kernel, code, "top-level await returns no value", result="'awaited'")


@_in_session
async def check_input_is_a_clear_error(kernel: Kernel) -> None:
    """``input()`` raises at once, with a clear message."""
    result = await _run(kernel, "name = input('Name? ')", _REACTION_SECONDS)
    _expect(result.outcome == "error", "input() is not an error", result)
    clear = "input() is not available" in result.stderr
    _expect(clear, "the error does not say that input() is not available", result)


@_in_session
async def check_any_text_can_be_printed(kernel: Kernel) -> None:
    """Lone surrogates are returned escaped, NUL and all other characters unchanged."""
    for code, text in (
        (r"print('a\ud800b')", "a\\ud800b\n"),
        (r"print('a\0b')", "a\0b\n"),
        ("print('眼 🦅')", "眼 🦅\n"),
    ):
        await _ok(kernel, code, f"the output of {code} is changed", stdout=text)
    result = await _ok(kernel, r"'\ud800'[0:1] + ''.join(['\0'])")
    _expect("ud800" in result.result, "a result with a surrogate or NUL is lost", result)


@_in_session
async def check_code_may_be_any_string(kernel: Kernel) -> None:
    """Code with invalid Unicode, and a megabyte of code, do not break the session."""
    for code in ("print('\ud800')", "x = '\0'", "\r\n\t ", "\ufeff1"):
        result = await _run(kernel, code)
        _expect(result.outcome in ("ok", "error"), "unusual code breaks the session", result)
    code = f"text = '''{'x' * (1 << 20)}'''\nlen(text)"
    await _ok(kernel, code, "a megabyte of code does not run", result=str(1 << 20))


@_in_session
async def check_long_output_is_cut_visibly(kernel: Kernel) -> None:
    """Text beyond the limits is truncated in the middle, with a marker, on every stream."""
    result = await _ok(
        kernel,
        "import sys\n"
        "for stream in (sys.stdout, sys.stderr):\n"
        "    print('first', file=stream)\n"
        "    for _ in range(30): print('x' * 100_000, file=stream)\n"
        "    print('last', file=stream)\n"
        "'y' * 3_000_000",
    )
    for text in (result.stdout, result.stderr, result.result):
        _expect(len(text) < _MAX_CHARACTERS, "long output is not truncated", result)
        _expect("characters cut" in text, "truncated output has no marker", result)
    for text in (result.stdout, result.stderr):
        _expect(text.startswith("first\n"), "the beginning of long output is lost", result)
        _expect(text.endswith("last\n"), "the end of long output is lost", result)
    message = "the output of the next cell is truncated as well"
    await _ok(kernel, "print('short')", message, stdout="short\n")


async def check_images_are_there_before_the_first_cell(provider: KernelProvider) -> None:
    """``image_1`` and so on are the session's images, as Pillow images in the given order."""
    first, second = _picture(40, 30), _picture(20, 60)
    digests = [await _added(provider, first), await _added(provider, second, "JPEG")]
    async with _session(provider, [*digests, digests[0]]) as kernel:
        await _ok(
            kernel,
            "[image.format for image in (image_1, image_2, image_3)], image_2.size, "
            "image_1.getpixel((3, 5)), list(image_3.getdata()) == list(image_1.getdata())",
            "the images differ from those added",
            result=repr((["PNG", "JPEG", "PNG"], (20, 60), first.getpixel((3, 5)), True)),
        )
        await _error(kernel, "image_4", "NameError")


async def check_missing_images_are_named(provider: KernelProvider) -> None:
    """A session on images that were not added raises ImagesMissing with their hashes."""
    added, absent = await _added(provider, _picture(8, 8)), "0" * 64
    try:
        kernel = await provider.open([added, absent])
    except ImagesMissing as missing:
        _expect(missing.digests == [absent], f"reported as missing are {missing.digests}")
    else:
        await kernel.close()
        _expect(False, "a session opens on an image that was not added")


async def check_what_is_no_image_is_rejected(provider: KernelProvider) -> None:
    """Bytes that are not a valid image of an accepted format raise ImageRejected with a reason."""
    whole = _encoded(_picture(64, 64))
    for data in (b"", b"no image", whole[: len(whole) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        adding = provider.add_image(hashlib.sha256(data).hexdigest(), data)
        await _expect_raises(ImageRejected, adding, f"{data[:20]!r}, which is no image")


async def check_displayed_images_come_back(provider: KernelProvider) -> None:
    """``display()`` and the last expression return PNG images in order, without their repr."""
    picture = _picture(48, 32)
    async with _session(provider, [await _added(provider, picture)]) as kernel:
        result = await _ok(
            kernel, "display(image_1.resize((10, 12)), 'and text')\nimage_1.crop((8, 4, 40, 28))"
        )
    _expect(len(result.images) == 2, "the number of images is wrong", result)
    one, two = (Image.open(io.BytesIO(image)).convert("RGB") for image in result.images)
    _expect(one.size == (10, 12), "the images are not in order", result)
    crop = picture.crop((8, 4, 40, 28))
    same = (two.size, two.tobytes()) == (crop.size, crop.tobytes())
    _expect(same, "a displayed image has different pixels", result)
    _expect(result.result == "", "an image is returned with its repr", result)
    _expect("and text" in result.stdout, "displayed text is lost", result)


@_in_session
async def check_a_displayed_jpeg_comes_back_as_png(kernel: Kernel) -> None:
    """Images are PNG, also if an object displays itself as JPEG."""
    result = await _ok(
        kernel,
        "import io\nfrom PIL import Image\n"
        "class Photo:\n"
        "    def _repr_jpeg_(self):\n"
        "        file = io.BytesIO()\n"
        "        Image.new('RGB', (9, 7), 'blue').save(file, 'JPEG')\n"
        "        return file.getvalue()\n"
        "Photo()",
    )
    sizes = [Image.open(io.BytesIO(image)).size for image in result.images]
    _expect(sizes == [(9, 7)], "a displayed JPEG is not returned", result)


@_in_session
async def check_figures_come_back(kernel: Kernel) -> None:
    """Figures are returned once by ``plt.show()``, if matplotlib is installed."""
    found = await _ok(kernel, "import importlib.util\nimportlib.util.find_spec('matplotlib')")
    if found.result:
        code = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()\nplt.get_fignums()"
        result = await _ok(kernel, code)
        _expect(len(result.images) == 1, "a displayed figure is not returned", result)


@_in_session
async def check_too_many_images_are_cut_visibly(kernel: Kernel) -> None:
    """Images beyond the limit are dropped, and stderr says how many."""
    code = f"for n in range({_MANY_IMAGES}): display(Image.new('L', (8, 8)))"
    result = await _ok(kernel, f"from PIL import Image\n{code}")
    _expect(len(result.images) < _MANY_IMAGES, "the number of images is not limited", result)
    dropped = _MANY_IMAGES - len(result.images)
    _expect(f"{dropped} images cut" in result.stderr, "dropped images are not reported", result)


async def check_names_are_those_that_the_code_made(provider: KernelProvider) -> None:
    """``names``, if known, has the variables of the code, and not the kernel's own."""
    async with _session(provider, [await _added(provider, _picture(8, 8))]) as kernel:
        _expect(not kernel.names, f"{kernel.names} are defined before any code has run")
        await _ok(kernel, "alpha = 1\ndef beta(): pass")
        if kernel.names:
            await _run(kernel, "gamma = 2\ndel alpha\n1 / 0")
            names = sorted(kernel.names)
            _expect(names == ["beta", "gamma"], f"names are {names}, not beta and gamma")


@_in_session
async def check_a_timeout_keeps_state_and_output(kernel: Kernel) -> None:
    """A cell is interrupted at its time limit; its state and output are preserved."""
    await _ok(kernel, "import asyncio, time")
    result = await _run(kernel, "x = 5\nprint('so far')\nwhile True: pass", 1.0)
    _expect(result.outcome == "timeout", "an endless loop does not result in a timeout", result)
    _expect(result.error_name == "TimeoutError", "error_name is wrong", result)
    _expect(result.stdout == "so far\n", "partial output is lost", result)
    _expect("1 s" in result.stderr, "stderr does not contain the limit", result)
    for code in ("time.sleep(90)", "await asyncio.sleep(90)"):
        result = await _run(kernel, code, 1.0)
        _expect(result.outcome == "timeout", f"{code} is not interrupted", result)
    await _ok(kernel, "x", "a timeout loses state", result="5")


@_in_session
async def check_a_swallowed_interrupt_is_killed(kernel: Kernel) -> None:
    """Code that does not react to the interrupt is killed after the grace period."""
    code = "import time\nwhile True:\n    try: time.sleep(90)\n    except BaseException: pass"
    result = await _run(kernel, code, 0.5)
    await _expect_killed(kernel, result, "a swallowed interrupt does not kill the session")


@_in_session
async def check_interrupt_ends_a_cell(kernel: Kernel) -> None:
    """``interrupt()`` raises KeyboardInterrupt in the running cell, and has no effect otherwise."""
    kernel.interrupt()
    await _ok(kernel, "x = 6")
    cell = asyncio.ensure_future(_error(kernel, "while True: pass", "KeyboardInterrupt"))
    deadline = time.monotonic() + _REACTION_SECONDS
    try:
        # The first ones may arrive before the loop starts.
        while not cell.done() and time.monotonic() < deadline:
            await asyncio.wait({cell}, timeout=1.0)
            kernel.interrupt()
        _expect(cell.done(), "interrupt() does not end a cell")
    except BaseException:
        cell.cancel()
        raise
    cell.result()
    await _ok(kernel, "x", "interrupt() loses state", result="6")


@_in_session
async def check_a_dying_process_is_killed_then_lost(kernel: Kernel) -> None:
    """The cell that ends the process results in ``killed``; the kernel then is not alive."""
    result = await _run(kernel, "import os\nos._exit(1)")
    await _expect_killed(kernel, result, "the end of the process is not reported")


@_in_session
async def check_death_between_cells_is_noticed(kernel: Kernel) -> None:
    """``alive`` turns False soon after the process has died, without another cell."""
    await _run(kernel, "import os, threading\nthreading.Timer(0.3, os._exit, [1]).start()")
    message = "a kernel without a process reports that it is alive"
    await _expect_soon(lambda: not kernel.alive, message)
    await _expect_dead(kernel)


@_in_session
async def check_close_leaves_no_process(kernel: Kernel) -> None:
    """``close()`` ends the process, is idempotent, and no cell runs after it."""
    pid = await _process(kernel)
    await asyncio.wait_for(kernel.close(), _REACTION_SECONDS)
    await _expect_gone(pid)
    await asyncio.wait_for(kernel.close(), _REACTION_SECONDS)
    kernel.interrupt()
    _expect(kernel.memory() >= 0, "memory() is negative after close()")
    await _expect_dead(kernel)


@_in_session
async def check_close_ends_a_running_cell(kernel: Kernel) -> None:
    """``close()`` does not wait for the running cell, which ends as ``killed`` or ``lost``."""
    pid = await _process(kernel)
    cell = asyncio.ensure_future(_run(kernel, "while True: pass"))
    await asyncio.wait({cell}, timeout=0.3)
    await asyncio.wait_for(kernel.close(), _REACTION_SECONDS)
    await asyncio.wait({cell}, timeout=_REACTION_SECONDS)
    _expect(cell.done(), "a cell does not end when its kernel is closed")
    result = cell.result()
    _expect(result.outcome in ("killed", "lost"), "the cell's outcome is wrong", result)
    await _expect_gone(pid)


async def check_kernels_do_not_see_each_other(provider: KernelProvider) -> None:
    """Variables, changes of shared images, and crashes of one kernel do not affect another."""
    digest = await _added(provider, _picture(32, 32))
    async with _session(provider, [digest]) as one, _session(provider, [digest]) as two:
        await _ok(one, "secret = 1\nimage_1.putpixel((2, 2), (9, 9, 9))\nimport math\nmath.pi = 3")
        await _error(two, "secret", "NameError")
        code = "import math\nimage_1.getpixel((2, 2)) == (9, 9, 9), math.pi == 3"
        await _ok(two, code, "a change is visible in another kernel", result="(False, False)")
        await _run(one, "import os\nos._exit(1)")
        await _ok(two, "1 + 1", "the end of one kernel affects another", result="2")


async def check_memory_and_descriptions(provider: KernelProvider) -> None:
    """``memory()``, ``isolation()`` and ``notes()`` return plausible values."""
    async with _session(provider) as kernel:
        before = kernel.memory()
        await _ok(kernel, "hoard = bytearray(b'x') * (64 << 20)")
        after = kernel.memory()
    _expect(before >= 0, f"memory() is {before}")
    grown = after - before
    _expect(before == after == 0 or grown > 32 << 20, f"64 MiB more count as {grown} bytes")
    for facts in (provider.isolation(), provider.notes()):
        valid = all(isinstance(text, str) and text for text in (*facts, *facts.values()))
        _expect(valid, f"{facts} is not a dictionary of non-empty strings")


async def check_a_restored_session_resumes(provider: KernelProvider) -> None:
    """A restored kernel has the variables and functions of the snapshot, or reports them lost."""
    if not provider.restorable:
        return
    async with _session(provider) as kernel:
        await _ok(
            kernel,
            "import math\nfrom PIL import Image\n"
            "factor = 2\ndef scaled(x): return x * factor\n"
            "class Point:\n    def __init__(self, x): self.x = x\n"
            "point = Point(4)\nwords = {'a': [1, 2]}\nsame = words['a']\n"
            "picture = Image.new('RGB', (6, 7), 'red')\n"
            "numbers = (n for n in range(3))\nnote = open('note.txt', 'w')\n"
            "note.write('kept'); note.flush()",
        )
        snapshot = await asyncio.wait_for(kernel.snapshot(64 << 20), _CELL_SECONDS)
        code = "factor = 5\nscaled(2), next(numbers), point.x"
        await _ok(kernel, code, "a snapshot disturbs its session", result="(10, 0, 4)")
    async with _session(provider) as kernel:
        lost = await _restored(kernel, snapshot)
        await _ok(
            kernel,
            "scaled(3), math.floor(1.5), point.x, words, picture.size",
            f"restored state differs; lost are {lost}",
            result="(6, 1, 4, {'a': [1, 2]}, (6, 7))",
        )
        code = "factor = 7\nsame.append(3)\nscaled(2), words['a']"
        message = "restored functions and variables do not share state as before"
        await _ok(kernel, code, message, result="(14, [1, 2, 3])")
        for name, use in (
            ("numbers", "next(numbers)"),
            ("note", "note.write('on')"),
            ("note.txt", "open('note.txt').read(4)"),
        ):
            if name not in lost:
                await _ok(kernel, use, f"{name} is missing, but not reported as lost")


async def check_a_snapshot_keeps_to_its_limit(provider: KernelProvider) -> None:
    """What does not fit is reported as lost; the rest is saved."""
    if not provider.restorable:
        return
    limit = 1 << 20
    async with _session(provider) as kernel:
        await _ok(kernel, "import os\nsmall = 1\nlarge = os.urandom(4 << 20)")
        snapshot = await asyncio.wait_for(kernel.snapshot(limit), _CELL_SECONDS)
    size = len(snapshot.data)
    _expect(size <= limit, f"a snapshot of at most {limit} bytes has {size}")
    _expect("large" in snapshot.lost, f"'large' is not among the lost {snapshot.lost}")
    _expect("small" in snapshot.names, f"'small' is not among the saved {snapshot.names}")
    async with _session(provider) as kernel:
        await _restored(kernel, snapshot)
        await _ok(kernel, "small", "a variable that fits is not saved", result="1")


async def check_what_cannot_be_saved_or_restored_raises(provider: KernelProvider) -> None:
    """If nothing was saved or restored, ``SnapshotFailed`` is raised with a reason."""
    async with _session(provider) as kernel:
        restoring = kernel.restore(b"no snapshot")
        await _expect_raises(SnapshotFailed, restoring, "bytes that are no snapshot")
    async with _session(provider) as kernel:
        if not provider.restorable:
            saving = kernel.snapshot(1 << 20)
            await _expect_raises(SnapshotFailed, saving, "a kernel that is not restorable")
        await kernel.close()
        saving = kernel.snapshot(1 << 20)
        await _expect_raises(SnapshotFailed, saving, "a kernel that was closed")


CHECKS: Final[list[tuple[str, Check]]] = [
    (name.removeprefix("check_"), check)
    for name, check in list(globals().items())
    if name.startswith("check_") and check is not check_provider
]
"""All checks with their names. A failing check raises AssertionError with a message."""


async def _restored(kernel: Kernel, snapshot: Snapshot) -> dict[str, str]:
    """Restore a snapshot; return everything that is lost, with the reasons."""
    not_restored = await asyncio.wait_for(kernel.restore(snapshot.data), _CELL_SECONDS)
    lost = snapshot.lost | not_restored
    reasons = all(isinstance(reason, str) and reason for reason in lost.values())
    _expect(reasons, f"{lost} has no reasons")
    return lost


@contextlib.asynccontextmanager
async def _session(provider: KernelProvider, images: Sequence[str] = ()) -> AsyncIterator[Kernel]:
    kernel = await provider.open(images)
    try:
        _expect(kernel.alive, "a new kernel is not alive")
        yield kernel
    finally:
        await asyncio.wait_for(kernel.close(), _REACTION_SECONDS)


async def _run(kernel: Kernel, code: str, seconds: float = _CELL_SECONDS) -> ExecutionResult:
    """Run a cell, and check what holds for every result."""
    started = time.monotonic()
    result = await asyncio.wait_for(kernel.execute(code, seconds), seconds + _REACTION_SECONDS)
    took = time.monotonic() - started
    _expect(isinstance(result, ExecutionResult), f"{type(result).__name__} is not ExecutionResult")
    _expect(result.outcome in get_args(Outcome), "the outcome is unknown", result)
    for text in (result.stdout, result.stderr, result.result, result.error_name or ""):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            _expect(False, "a text of the result is not valid Unicode", result)
    png = all(isinstance(image, bytes) and image.startswith(_PNG) for image in result.images)
    _expect(png, "an image is not a PNG", result)
    _expect(0 <= result.duration <= took + 0.1, f"the cell took {took:.3f} s", result)
    return result


async def _ok(kernel: Kernel, code: str, wrong: str = "", **expected: str) -> ExecutionResult:
    """Run a cell that must complete, with the expected fields in its result.

    Args:
        kernel: The kernel.
        code: The cell.
        wrong: Message if the result differs.
        **expected: Fields of the result.
    """
    result = await _run(kernel, code)
    what = f"the cell {code[:200]!r} did not complete"
    _expect((result.outcome, result.error_name) == ("ok", None), wrong or what, result)
    _expect(all(getattr(result, name) == expected[name] for name in expected), wrong, result)
    return result


async def _error(kernel: Kernel, code: str, name: str) -> ExecutionResult:
    """Run a cell that must end with the exception of that name, and a plain traceback."""
    result = await _run(kernel, code)
    ended = (result.outcome, result.error_name) == ("error", name)
    _expect(ended, f"the cell {code[:200]!r} does not end as an error, {name}", result)
    _expect("\x1b" not in result.stderr, "the traceback has terminal codes", result)
    return result


async def _expect_raises(kind: type[Exception], work: Awaitable[object], what: str) -> None:
    try:
        await asyncio.wait_for(work, _CELL_SECONDS)
    except kind as error:
        _expect(bool(str(error)), f"{kind.__name__} for {what} has no reason")
    else:
        _expect(False, f"{kind.__name__} is not raised for {what}")


async def _expect_killed(kernel: Kernel, result: ExecutionResult, message: str) -> None:
    _expect(result.outcome == "killed", message, result)
    _expect(bool(result.stderr), "stderr does not say why the session has ended", result)
    await _expect_dead(kernel)


async def _expect_dead(kernel: Kernel) -> None:
    """Check that an ended kernel reports that it is not alive, and runs no cell."""
    _expect(not kernel.alive, "an ended kernel reports that it is alive")
    result = await _run(kernel, "1", 1.0)
    _expect(result.outcome in ("lost", "killed"), "a cell ran in a dead kernel", result)
    _expect(bool(result.stderr), "stderr does not say that the session has ended", result)


async def _process(kernel: Kernel) -> int:
    """Return the ID of the kernel's process if it is visible from here, else 0."""
    pid = int((await _ok(kernel, "import os\nos.getpid()")).result)
    return pid if _running(pid) and pid != os.getpid() else 0


async def _expect_gone(pid: int) -> None:
    if pid:
        await _expect_soon(
            lambda: not _running(pid), f"process {pid} of the kernel is still running"
        )


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


async def _expect_soon(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + _REACTION_SECONDS
    while not condition():
        _expect(time.monotonic() < deadline, message)
        await asyncio.sleep(0.02)


def _expect(condition: bool, message: str, result: ExecutionResult | None = None) -> None:
    if not condition:
        raise AssertionError(message if result is None else f"{message}; {_summary(result)}")


def _summary(result: ExecutionResult) -> str:
    texts = {"stdout": result.stdout, "stderr": result.stderr, "result": result.result}
    parts = [f"outcome {result.outcome}", f"error_name {result.error_name}"]
    parts += [f"{name} {text[:300]!r}" for name, text in texts.items() if text]
    return ", ".join([*parts, f"{len(result.images)} images"])


def _picture(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    image.putdata(
        [(x * 3 % 256, y * 5 % 256, x * y % 256) for y in range(height) for x in range(width)]
    )
    return image


def _encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


async def _added(provider: KernelProvider, image: Image.Image, kind: str = "PNG") -> str:
    data = _encoded(image, kind)
    digest = hashlib.sha256(data).hexdigest()
    await provider.add_image(digest, data)
    return digest
