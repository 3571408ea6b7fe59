"""The table of pairs: who decides, and that nobody decides wrongly."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepeyes_plugins.rewards.accuracy import rule_verdict
from deepeyes_plugins.rewards.algebra import Algebra
from deepeyes_plugins.rewards.latex import LONGEST
from deepeyes_plugins.rewards.mathematics import mathematics_verdict
from deepeyes_plugins.rewards.values import read
from tests.rewards.pairs import EQUAL, PAIRS, WRONG

DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"
EITHER_WAY = [
    pair
    for reference, answer, right in PAIRS
    for pair in ((reference, answer, right), (answer, reference, right))
]


def test_the_table_covers_both_verdicts_of_every_kind() -> None:
    assert len(PAIRS) == len({(reference, answer) for reference, answer, _ in PAIRS}) >= 200
    assert sum(right for *_, right in PAIRS) * 2 >= len(PAIRS)
    assert WRONG.keys() <= EQUAL.keys()


def test_rules_that_are_sure_are_right() -> None:
    assert [
        (reference, answer)
        for reference, answer, right in EITHER_WAY
        if mathematics_verdict(answer, reference) not in (right, None)
    ] == []


def test_rules_of_plain_text_that_are_sure_are_right() -> None:
    assert [
        (reference, answer)
        for reference, answer, right in EITHER_WAY
        if rule_verdict(answer, reference) not in (right, None)
        and reference.casefold() != answer.casefold()  # Only in mathematics does it matter.
    ] == []


async def test_algebra_pays_no_wrong_answer_and_the_documented_figures_are_true() -> None:
    algebra = Algebra()
    decided: Counter[tuple[str, bool]] = Counter()
    wrongly = []
    try:
        for at, (reference, answer, right) in enumerate(EITHER_WAY):
            who, verdict = "rules", mathematics_verdict(answer, reference)
            if verdict is None:
                paid = await algebra.equal(answer, reference, timeout=60) is True
                who, verdict = ("math-verify", True) if paid else ("judge", False)
                if paid and not right:
                    wrongly.append((reference, answer))
            if at % 2 == 0:
                decided[who, verdict is right] += 1
    finally:
        await algebra.aclose()
    assert wrongly == []
    page = DOCS.read_text()
    for who in ("rules", "math-verify", "judge"):
        right, wrong = decided[who, True], decided[who, False]
        assert f"| {right + wrong} | {right} |\n" in _line(page, who)
    assert f"{len(PAIRS)} pairs" in page


def _line(page: str, who: str) -> str:
    (line,) = (line for line in page.splitlines(keepends=True) if line.startswith(f"| {who}"))
    return line


def spellings(number: Fraction) -> list[str]:
    """Ways to write one number; exact ones only."""
    top, bottom = number.as_integer_ratio()
    sign, size = ("-", -top) if top < 0 else ("", top)
    found = [
        f"{top}/{bottom}",
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"{sign}\dfrac{{{size}}}{{{bottom}}}",
        rf"\boxed{{{sign}\tfrac{{{2 * size}}}{{{2 * bottom}}}}}",
        rf"$x = {sign}\frac {{{size}}} {{{bottom}}}$",
        f"{100 * top}/{bottom}" + r"\%",
    ]
    whole, rest = divmod(size, bottom)
    if whole and rest:
        found += [f"{sign}{whole} {rest}/{bottom}", rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}"]
    if bottom == 1:
        found += [f"{top:,}", f"{top:,}".replace(",", " "), f"{top:,}".replace(",", r"\,")]
        found += [
            f"{top:,}".replace(",", "{,}"),
            f"{top}.0",
            f"{sign}{size}e0",
            f"−{size}"[not sign :],
        ]
    if bottom % 2 and bottom % 5 and rest:
        period, left = "", rest
        while True:
            digit, left = divmod(10 * left, bottom)
            period += str(digit)
            if left == rest:
                break
        found += [rf"{sign}{whole}.\overline{{{period}}}", f"{sign}{whole}.({period})"]
    return found


NUMBERS = st.fractions(-2000, 2_000_000, max_denominator=60) | st.integers().map(Fraction)
SPELLED = st.tuples(NUMBERS, st.randoms(use_true_random=False)).map(
    lambda drawn: (drawn[0], drawn[1].choice(spellings(drawn[0])))
)


@given(NUMBERS, st.data())
def test_every_spelling_of_a_number_is_equal(number: Fraction, data: st.DataObject) -> None:
    one, other = (data.draw(st.sampled_from(spellings(number))) for _ in range(2))
    assert mathematics_verdict(one, other) is True


@given(SPELLED, SPELLED)
def test_no_spelling_of_another_number_is_equal(
    one: tuple[Fraction, str], other: tuple[Fraction, str]
) -> None:
    assume(one[0] != other[0])
    assert mathematics_verdict(one[1], other[1]) is not True
    assert rule_verdict(one[1], other[1]) is not True


PIECES = st.sampled_from(
    str.split(
        r"\frac|\sqrt|\overline{3}|\text{|{|}|(|)|[|]|\{|\}|1| 2|3 |,|, |/|^|_|=|-|.|%|$|x|cm| or "
        r"|°|\pm|\cup|\\|&|\begin{pmatrix}|\end{pmatrix}|e9|½|²|厘米",
        "|",
    )
)
ANSWERS = st.lists(PIECES, min_size=1, max_size=12).map("".join) | st.text(min_size=1)


@given(ANSWERS, ANSWERS)
def test_any_text_is_read_and_compared_either_way(answer: str, reference: str) -> None:
    verdicts = mathematics_verdict(answer, reference), mathematics_verdict(reference, answer)
    assert True not in verdicts or False not in verdicts
    if answer.strip():
        assert mathematics_verdict(answer, answer) is True


@pytest.mark.parametrize(
    "piece",
    str.split(
        r"(~\{~{~1 ~1,~1, ~x=~5 cm ~\frac~m^{2}~x or ~\pm~9~-~(1,~\text{~1.(3)~5 million ~2°~\sqrt"
        r"~&~\\~^~_~^\sqrt~\text~or ",
        "~",
    ),
)
def test_the_longest_answer_that_is_read_takes_little_time(piece: str) -> None:
    started = time.process_time()
    for ending in ("", "x"):
        text = piece * ((LONGEST - 1) // len(piece)) + ending
        value = read(text)
        assert mathematics_verdict(text, "5") in (None, False) or value is not None
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("text", ["9^9^9", "1e999999999", "10^{999999999}", r"1\times10^{9999999}"])
def test_a_huge_power_is_left_to_algebra(text: str) -> None:
    assert mathematics_verdict(text, "3") is None
