"""Which answers count as the reference, by rules alone."""

from __future__ import annotations

import string
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from deepeyes_plugins.rewards.rules import (
    normalize,
    rule_accuracy,
    rule_verdict,
    starts_with_truth,
)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("red", "Red"),
        ("The red car.", "a red car"),
        ("**red**", "red"),
        ("**The car** is red", "car is red"),
        ('"red"', "red"),
        ("  red \n", "red"),
        ("Straße", "strasse"),
        ("红色。", "红色"),
        ("the", "The"),
        ("+", "+"),
        ("?", "?"),
    ],
)
def test_the_same_text(answer: str, truth: str) -> None:
    assert rule_accuracy(answer, truth) == 1.0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("blue", "red"),
        ("dark red", "red"),
        ("C", "C++"),
        ("C#", "C++"),
        ("5 MB", "5 Mb"),
        ("5 mW.", "5 MW"),
        (r"2\pi r", r"2\pi R"),
        ("[a, b)", "(a, b]"),
        ("(a,b)", "[a,b]"),
        ("5 degrees", "-5 degrees"),
        ("5 m", ".5 m"),
        ("!", "?"),
        ("hello", "中"),
        ("hello", "é"),
        ("hello", "?"),
        (None, "red"),
        ("", "red"),
        ("  ", "red"),
        ("red", ""),
        (".", ""),
    ],
)
def test_another_text(answer: str | None, truth: str) -> None:
    assert rule_accuracy(answer, truth) == 0.0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1,000", "1000"),
        ("1000.0", "1,000"),
        ("1 000", "1000"),
        ("50%", "0.5"),
        ("50 %", "0.5"),
        ("1/2", "0.5"),
        ("0.50", ".5"),
        ("$5", "5"),
        ("$ 5.", "5"),
        ("-$5", "-5"),
        ("−5", "-5"),
        ("+5", "5"),
        ("007", "7"),
        ("**7**", "7"),
    ],
)
def test_the_same_number(answer: str, truth: str) -> None:
    assert rule_accuracy(answer, truth) == 1.0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1 2", "12"),
        ("5", "-5"),
        ("50", "50%"),
        ("10,00", "1000"),
        ("7 or 8", "7"),
        ("seven", "7"),
        ("1/0", "1"),
        ("9" * 10_000, "9"),
    ],
)
def test_another_number(answer: str, truth: str) -> None:
    assert rule_accuracy(answer, truth) == 0.0


@pytest.mark.parametrize(
    ("answer", "truth", "verdict"),
    [
        ("5/6", "5/7", False),
        ("10/12", "5/6", None),  # Dates, scores?
        ("12/4", "3", None),
        ("4/5", "4", None),
        ("5 / 6", "5/6", True),
        ("2 1/4", "21/4", False),
        ("50", "50%", None),
        ("50%", "60%", False),
        ("5%", "$0.05", None),
        ("5 cm", "5 m", False),
        ("10 minutes", "10 min", True),
        ("60 minutes", "1 hour", True),
        ("$5", "€5", None),
        ("$5", "5 cents", False),
        ("5'", "5", None),
        ("5!", "5", None),
        ("5…", "5", None),
        ("n!", "n", None),
        ("(1,2]", "[1,2)", None),
        ("1 2", "1, 2", None),
        ("10:30", "10.30", None),
        ("2024-05-01", "2024/05/01", None),
        ("1.000", "1,000", None),
        ("3.1", "3", None),
    ],
)
def test_what_may_be_more_than_a_number(answer: str, truth: str, verdict: bool | None) -> None:
    assert rule_verdict(answer, truth) is verdict
    assert rule_verdict(truth, answer) is verdict


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("Terminal", "Terminal A"), ("team", "the A team"), ("e.g. red", "E"), ("a.m.", "A")],
)
def test_letters_that_are_no_articles_and_no_options(answer: str, truth: str) -> None:
    assert rule_verdict(answer, truth) is not True


@pytest.mark.parametrize("truth", ["B", "b", "(B)", "B."])
@pytest.mark.parametrize("answer", ["B", "b", "(b)", "B.", "B) red", "(B) red", "B. red", "B: red"])
def test_the_same_option(answer: str, truth: str) -> None:
    assert rule_accuracy(answer, truth) == 1.0


@pytest.mark.parametrize("answer", ["A", "Blue", "A or B", "AB", "A. not B", "red", "1", "é"])
def test_another_option(answer: str) -> None:
    assert rule_accuracy(answer, "B") == 0.0


@given(st.text())
@example("1/0")
@example("%")
@example("**")
@example("an a the")
def test_the_reference_itself_is_right(truth: str) -> None:
    assume(truth.strip())
    assert rule_accuracy(truth, truth) == 1.0
    assert rule_accuracy(f" {truth}\n", truth) == 1.0


@given(st.sampled_from(string.ascii_letters), st.sampled_from(string.ascii_letters), st.text())
def test_option_letters(truth: str, letter: str, more: str) -> None:
    assert rule_accuracy(f"{letter}. {more}", truth) == float(letter.lower() == truth.lower())


@given(st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_numbers_in_any_notation(number: int, zeros: int) -> None:
    fraction = "." + "0" * zeros if zeros else ""
    for notation in (f"{number:,}{fraction}", f"{number}{fraction}", f"{number * 100}%"):
        assert rule_accuracy(notation, str(number)) == 1.0
    assert rule_accuracy(str(number + 1), str(number)) == 0.0


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_compared_exactly(a: Fraction, b: Fraction) -> None:
    assert rule_accuracy(str(a), str(b)) == float(a == b)


@given(st.text(), st.text())
def test_any_text_is_judged(answer: str, truth: str) -> None:
    assert rule_accuracy(answer, truth) in (0.0, 1.0)


@given(st.text())
def test_normal_form_is_clean(text: str) -> None:
    assert normalize(text) == " ".join(normalize(text).split())


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("A", "A", True),
        ("a. red", "A", True),
        ("Apple", "A", False),
        ("Red, I think", "red", True),
        ("The red one", "red", False),
        ("redder", "red", False),
        (None, "red", False),
        ("red", "", False),
        ("C++ (2011)", "C++", True),
        ("5 cars", "5", True),
        ("5. It is red.", "5", True),
        ("5.5", "5", False),
        ("5,000", "5", False),
        ("5 000", "5", False),
        ("5/6", "5", False),
        ("5%", "5", False),
        ("5-7", "5", False),
        ("5 or more", "5", False),
        ("5! = 120", "5", False),
        ("$5 million", "$5", False),
        ("5 m^2", "5 m", False),
        ("5 m/s", "5 m", False),
        ("C++", "C", False),
        ("A+", "A", False),
        ("A-", "A", False),
        ("Stop! It is red.", "stop", True),
        ("A red car", "A", False),
        ("A is wrong, B is right", "A", False),
        ("C is wrong", "C", False),
        ("C, the red car", "C", True),
        ("B red", "B", True),
    ],
)
def test_starts_with_the_reference(answer: str | None, truth: str, expected: bool) -> None:
    assert starts_with_truth(answer, truth) is expected
