"""Mathematical answers: typesetting does not matter, and computer algebra cannot get stuck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.rewards import algebra, presets
from deepeyes_plugins.rewards.algebra import Algebra
from deepeyes_plugins.rewards.mathematics import (
    bare_mathematics,
    boxed,
    mathematics_verdict,
)
from tests.rewards.judges import ScriptedJudge, answer, score, scorer

SETTINGS = {"reason": {"math_verify": True}}


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        (r"\boxed{5}", "5"),
        ("$5$", "5"),
        ("$$5$$", "5"),
        (r"\(5\)", "5"),
        ("x = 5", "5"),
        ("5.", "5"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac12", "1/2"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"\text{red}", "red"),
        (r"50\%", "50%"),
        (r"90^\circ", "90"),
        ("90°", r"90^{\circ}"),
        ("5 cm", "5"),
        ("1{,}000", "1000"),
        (r"2\sqrt3", r"2\sqrt{3}"),
        (r"\left(1, 2\right)", "(1,2)"),
        ("x+1", "x + 1"),
        (r"\$5", "5"),
    ],
)
def test_the_same_answer(text: str, truth: str) -> None:
    assert mathematics_verdict(text, truth) is True


@pytest.mark.parametrize(
    ("text", "truth", "verdict"),
    [
        ("5", "6", False),
        ("$5$", "6", False),
        ("B", "A", False),
        ("5 km", "5000 meters", True),
        ("5 km", "5000", None),
        (r"\sqrt{12}", r"2\sqrt{3}", None),
        ("0.333", r"\frac{1}{3}", None),
        ("x = 5, y = 6", "5", None),
        ("", "5", False),
    ],
)
def test_another_answer(text: str, truth: str, verdict: bool | None) -> None:
    assert mathematics_verdict(text, truth) is verdict


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{5}", ["5"]),
        (r"So \boxed{\frac{1}{2}}, or \boxed{{3}}.", [r"\frac{1}{2}", "{3}"]),
        (r"\boxed{5", []),
        (r"\boxed{}", [""]),
        ("5", []),
    ],
)
def test_boxes(text: str, found: list[str]) -> None:
    assert boxed(text) == found


@given(st.text(alphabet="$\\{}()[]=. x5boxed"))
def test_unwrapping_ends_and_leaves_something(text: str) -> None:
    assert bool(bare_mathematics(text)) == bool(text.strip())


@pytest_asyncio.fixture(loop_scope="class", scope="class")
async def verifier() -> AsyncIterator[Algebra]:
    found = Algebra()
    yield found
    await found.aclose()


class TestMathVerify:
    pytestmark = pytest.mark.asyncio(loop_scope="class")

    @pytest.mark.parametrize(
        ("text", "truth", "verdict"),
        [
            (r"\sqrt{12}", r"2\sqrt{3}", True),
            ("(x+1)^2", "x^2+2x+1", True),
            (r"\{2, 1\}", r"\{1, 2\}", True),
            ("x^2", "x^3", False),
            ("god", "dog", None),
            ("7", "7 or 8", None),
            (r"\frac{", "1", None),
        ],
    )
    async def test_decides(
        self, verifier: Algebra, text: str, truth: str, verdict: bool | None
    ) -> None:
        assert await verifier.equal(text, truth, timeout=30) is verdict

    @pytest.mark.parametrize("bomb", ["9^{9^{9^9}}", "(10^{10^{8}})!"])
    async def test_an_answer_that_never_ends_is_given_up(
        self, verifier: Algebra, bomb: str
    ) -> None:
        assert await verifier.equal("x", "x", timeout=60) is True
        beats = 0

        async def count() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        counting = asyncio.ensure_future(count())
        started = time.monotonic()
        assert await verifier.equal(bomb, "2^{10}", timeout=0.5) is None
        assert 0.4 < time.monotonic() - started < 10
        assert beats > 10  # Nothing else had to wait.
        counting.cancel()
        assert await verifier.equal(r"\sqrt{12}", r"2\sqrt{3}", timeout=30) is True

    async def test_questions_wait_for_each_other_and_keep_their_verdicts(
        self, verifier: Algebra
    ) -> None:
        asked = [verifier.equal(f"{n}+x", f"x+{n % 3}", timeout=60) for n in range(9)]
        assert await asyncio.gather(*asked) == [n < 3 for n in range(9)]

    async def test_a_cancelled_question_does_not_shift_the_others(self, verifier: Algebra) -> None:
        lost = asyncio.ensure_future(verifier.equal("9^{9^{9^9}}", "2^{10}", timeout=30))
        await asyncio.sleep(0)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        assert await verifier.equal("y+x", "x+y", timeout=60) is True


def test_it_works_off_the_main_thread() -> None:
    async def compare() -> bool | None:
        found = Algebra()
        try:
            return await found.equal(r"\sqrt{12}", r"2\sqrt{3}", timeout=30)
        finally:
            await found.aclose()

    async def elsewhere() -> bool | None:
        return await asyncio.to_thread(asyncio.run, compare())

    assert asyncio.run(elsewhere()) is True


async def test_it_decides_before_the_judge_is_asked() -> None:
    judge = ScriptedJudge(False)
    turn = answer(r"\sqrt{12}")
    asked = await score("reason", turn, truth=r"2\sqrt{3}", judge=judge)
    assert (asked.parts["acc"], asked.parts["judged"]) == (0.0, 1.0)
    spared = await score("reason", turn, truth=r"2\sqrt{3}", judge=judge, rewards=SETTINGS)
    assert (spared.parts["acc"], spared.parts["judged"]) == (1.0, 0.0)
    assert len(judge.asked) == 1


def test_without_the_package_it_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets.algebra, "available", lambda: False)
    assert algebra.available() is False
    with pytest.raises(SettingsError, match=r"reason\.math_verify is on, but .* pip install"):
        scorer(rewards=SETTINGS).reward_for("reason")
