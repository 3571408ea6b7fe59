"""What a cell can rely on."""

from __future__ import annotations

import asyncio

import pytest

from deepeyes_plugins.sandbox import SandboxClient, SandboxSession

from .conftest import decoded


async def test_last_expression_and_stdout_come_back(session: SandboxSession) -> None:
    result = await session.execute("print('hello')\n6 * 7", timeout=10)
    assert (result.outcome, result.stdout, result.result) == ("ok", "hello\n", "42")
    assert result.stderr == "" and result.images == [] and result.error_name is None
    assert 0 < result.duration < 10


async def test_variables_imports_and_functions_live_from_cell_to_cell(
    session: SandboxSession,
) -> None:
    await session.execute("import math\ndef area(r): return math.pi * r * r\nx = 2", timeout=10)
    result = await session.execute("round(area(x), 2)", timeout=10)
    assert result.result == "12.57"


async def test_generators_threads_and_open_files_live_on_too(session: SandboxSession) -> None:
    await session.execute(
        "numbers = iter(range(9)); next(numbers)\n"
        "log = open('log.txt', 'w+'); log.write('kept')\n"
        "import threading; lock = threading.Lock()",
        timeout=10,
    )
    result = await session.execute("log.seek(0); next(numbers), log.read()", timeout=10)
    assert result.result == "(1, 'kept')"


async def test_errors_are_plain_tracebacks_of_the_cell_alone(session: SandboxSession) -> None:
    await session.execute("def half(x):\n    return x / 0", timeout=10)
    result = await session.execute("print('before')\nhalf(1)", timeout=10)
    assert (result.outcome, result.error_name, result.stdout) == (
        "error",
        "ZeroDivisionError",
        "before\n",
    )
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert 'File "<cell 1>", line 2, in half' in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "\x1b" not in result.stderr and "site-packages" not in result.stderr


async def test_syntax_errors_say_where(session: SandboxSession) -> None:
    result = await session.execute("def f(:\n    pass", timeout=10)
    assert (result.outcome, result.error_name) == ("error", "SyntaxError")
    assert "line 1" in result.stderr and "SyntaxError: invalid syntax" in result.stderr


async def test_warnings_and_stderr_are_captured(session: SandboxSession) -> None:
    result = await session.execute(
        "import sys, warnings\nwarnings.warn('careful')\nsys.stderr.write('low')", timeout=10
    )
    assert result.outcome == "ok"
    assert "careful" in result.stderr and "low" in result.stderr


async def test_jupyter_style_code_works(session: SandboxSession) -> None:
    result = await session.execute(
        "%matplotlib inline\nimport asyncio\nawait asyncio.sleep(0, 'awaited')", timeout=10
    )
    assert (result.outcome, result.result) == ("ok", "'awaited'")


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        (r"print('a\ud800b')", "a\\ud800b\n"),
        (r"print('a\0b')", "a\0b\n"),
        ("print('眼 🦅')", "眼 🦅\n"),
        (r"import sys; sys.stdout.buffer.write(b'raw \xff') and None", "raw \ufffd"),
    ],
    ids=["surrogate", "nul", "unicode", "bytes"],
)
async def test_any_text_can_be_printed(session: SandboxSession, code: str, stdout: str) -> None:
    result = await session.execute(code, timeout=10)
    assert (result.outcome, result.stdout) == ("ok", stdout)


@pytest.mark.parametrize("code", ["print('\ud800')", "x = '\0'", ""], ids=["surrogate", "nul", ""])
async def test_code_may_be_any_string(session: SandboxSession, code: str) -> None:
    assert (await session.execute(code, timeout=10)).outcome in ("ok", "error")
    assert (await session.execute("1 + 1", timeout=10)).result == "2"


async def test_endless_output_is_cut_visibly_and_not_hoarded(session: SandboxSession) -> None:
    result = await session.execute(
        "import resource\n"
        "print('first')\n"
        "for _ in range(200): print('x' * (1 << 20))\n"
        "print('last')\n"
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 300 << 10",
        timeout=60,
    )
    assert result.outcome == "ok" and result.result == "True"
    assert result.stdout.startswith("first\n") and result.stdout.endswith("last\n")
    assert "characters cut" in result.stdout and len(result.stdout) < 8100


async def test_a_long_result_is_cut(session: SandboxSession) -> None:
    result = await session.execute("'y' * 10**6", timeout=10)
    assert len(result.result) < 8100 and "characters cut" in result.result


async def test_a_raising_repr_is_an_error_of_the_cell(session: SandboxSession) -> None:
    result = await session.execute(
        "class Odd:\n    def __repr__(self): raise ValueError('no repr')\nOdd()", timeout=10
    )
    assert (result.outcome, result.error_name) == ("error", "ValueError")
    assert "no repr" in result.stderr


async def test_nobody_answers_input(session: SandboxSession) -> None:
    result = await session.execute("name = input('Name? ')", timeout=10)
    assert result.error_name == "EOFError" and "input() is not available" in result.stderr


async def test_exit_does_not_end_the_session(session: SandboxSession) -> None:
    await session.execute("kept = 1\nimport sys\nsys.exit(3)", timeout=10)
    await session.execute("exit()", timeout=10)
    assert (await session.execute("kept", timeout=10)).result == "1"


async def test_hijacked_streams_and_handlers_are_put_back(session: SandboxSession) -> None:
    await session.execute(
        "import sys, signal\nsys.stdout = sys.stderr = None\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        timeout=10,
    )
    assert (await session.execute("print('back')", timeout=10)).stdout == "back\n"
    assert (await session.execute("while True: pass", timeout=0.3)).outcome == "timeout"


async def test_cells_of_one_session_run_one_after_another(session: SandboxSession) -> None:
    await session.execute("import time\nseen = []", timeout=10)
    cells = [
        f"seen.append(({n}, 'in')); time.sleep(0.02); seen.append(({n}, 'out'))" for n in range(4)
    ]
    results = await asyncio.gather(*(session.execute(cell, timeout=10) for cell in cells))
    assert {result.outcome for result in results} == {"ok"}
    pairs = await session.execute(
        "[a[0] == b[0] for a, b in zip(seen[::2], seen[1::2])]", timeout=10
    )
    assert pairs.result == "[True, True, True, True]"


async def test_sessions_do_not_see_each_other(client: SandboxClient) -> None:
    async with await client.create_session() as one, await client.create_session() as two:
        await one.execute("secret = 1\nopen('note.txt', 'w').write('mine')", timeout=10)
        folder = (await one.execute("import os; os.getcwd()", timeout=10)).result
        assert (await two.execute("secret", timeout=10)).error_name == "NameError"
        theirs = await two.execute(f"open({folder} + '/note.txt').read()", timeout=10)
        assert theirs.error_name in ("PermissionError", "FileNotFoundError")


async def test_random_numbers_differ_between_sessions(client: SandboxClient) -> None:
    code = "import random, numpy; (random.random(), numpy.random.rand())"
    async with await client.create_session() as one, await client.create_session() as two:
        first, second = (await one.execute(code, 10)).result, (await two.execute(code, 10)).result
    assert first != second and first.split(",")[1] != second.split(",")[1]


async def test_many_sessions_at_once(client: SandboxClient) -> None:
    async def own(number: int) -> str:
        async with await client.create_session() as session:
            await session.execute(f"x = {number}", timeout=30)
            return (await session.execute("x * x", timeout=30)).result

    squares = await asyncio.gather(*(own(number) for number in range(32)))
    assert squares == [str(number * number) for number in range(32)]


async def test_a_plot_comes_back_once_and_is_closed(session: SandboxSession) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()\n"
    result = await session.execute(code, timeout=60)
    assert result.outcome == "ok", result.stderr
    assert [decoded(image).format for image in result.images] == ["PNG"]
    assert (await session.execute("plt.get_fignums()", timeout=10)).result == "[]"
