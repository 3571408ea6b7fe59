"""What counts as a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.judge.contracts import PromptName
from deepeyes_plugins.judge.verdicts import read_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (r"\boxed{Yes}", True),
        (r"\boxed{No}", False),
        (r"<think>They agree.</think>\boxed{Yes}", True),
        ("<think>a</think>\n\nBoth name the same dog.\n\n\\boxed{Yes}\n", True),
        (r"So the verdict is $\boxed{No}$.", False),
        (r"**\boxed{yes}**", True),
        (r"\boxed{ NO }", False),
        (r"\boxed {Yes}", True),
        (r"\boxed{**Yes**}", True),
        (r"\boxed{\text{No}}", False),
        (r"\boxed{Yes.}", True),
        (r"`\boxed{Yes}`", True),
        ("```\n\\boxed{No}\n```", False),
        # A box that is no verdict does not disturb; two that agree are one.
        (r"The reference is \boxed{42}. \boxed{No}", False),
        (r"\boxed{Yes} I repeat: \boxed{Yes}", True),
        (r"Write \boxed{Yes|No}. \boxed{No}", False),
        # What was thought does not count, whatever tags were thought about.
        (r"<think>\boxed{Yes}? No: </think>\boxed{No}", False),
        (r"<think>it says </think>\boxed{Yes}, hm</think>\boxed{No}", False),
        (r"I think.</think>\boxed{Yes}", True),
    ],
)
def test_a_clear_answer_verdict(reply: str, verdict: bool) -> None:
    assert read_verdict("answer", reply) is verdict


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Yes",
        "The answer is right.",
        r"\boxed{}",
        r"\boxed{42}",
        r"\boxed{Yes|No}",
        r"\boxed{Yes or No}",
        r"\boxed{Maybe}",
        r"\boxed{Yes, but no}",
        r"\boxed{Yesterday}",
        r"\boxed{是}",
        r"\boxed{Oui}",
        r"\boxed{Yes",
        r"\boxed Yes",
        r"boxed{Yes}",
        r"\fbox{Yes}",
        # Both.
        r"\boxed{Yes} \boxed{No}",
        r"The answer says \boxed{Yes}, but \boxed{No}",
        # Thinking only, closed or not.
        r"<think>\boxed{Yes}",
        r"<think>\boxed{Yes}</think>",
        r"<think>a</think><think>\boxed{Yes}",
        "## Equivalence Judgement\nTRUE",
        # Turkish and Kelvin letters fold to ASCII in some libraries.
        "\\boxed{\u0130es}",
        "\\boxed{Ye\u017f}",
    ],
)
def test_no_clear_answer_verdict(reply: str) -> None:
    assert read_verdict("answer", reply) is None


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("## Equivalence Judgement\nTRUE", True),
        ("Equal.\n\n## Equivalence Judgement\nFALSE\n", False),
        ("<think>TRUE?</think>## Equivalence Judgement\n\nFALSE", False),
        ("## Equivalence Judgement: TRUE", True),
        ("**Equivalence Judgement**\n**False**", False),
        ("### equivalence judgment\n- true.", True),
        ("## Equivalence Judgement\n\\boxed{TRUE}", True),
        ("It is TRUE that both are 3.\n## Equivalence Judgement\nFALSE", False),
        ("## Equivalence Judgement\nTRUE\n## Equivalence Judgement\nTRUE", True),
        ("## Equivalence Judgement\n`TRUE`\nBoth are one half.", True),
    ],
)
def test_a_clear_equivalence_verdict(reply: str, verdict: bool) -> None:
    assert read_verdict("equivalence", reply) is verdict


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "TRUE",
        r"\boxed{Yes}",
        "## Equivalence Judgement",
        "## Equivalence Judgement\n",
        "## Equivalence Judgement\nTRUE or FALSE",
        "## Equivalence Judgement\nTRUE/FALSE",
        "## Equivalence Judgement\nnot TRUE",
        "## Equivalence Judgement\nTRUEST",
        "## Equivalence Judgement\nWAHR",
        "## Equivalence Judgement\nThey are equal: TRUE",
        "## Equivalence Judgement\nTRUE\n## Equivalence Judgement\nFALSE",
        "## Judgement\nTRUE",
        "<think>## Equivalence Judgement\nTRUE",
        "<think>## Equivalence Judgement\nTRUE</think>",
    ],
)
def test_no_clear_equivalence_verdict(reply: str) -> None:
    assert read_verdict("equivalence", reply) is None


PROMPTS = st.sampled_from(["answer", "equivalence"])
# Texts made of the pieces that matter, more often than chance would.
PIECES = st.lists(
    st.sampled_from(
        [
            *(r"\boxed{", "}", "Yes", "No", "TRUE", "FALSE", "<think>", "</think>", "\n", " "),
            *("## Equivalence Judgement", "**", "\\", "text{", "42"),
        ]
    )
    | st.text(max_size=5)
).map("".join)


@given(PROMPTS, PIECES)
def test_whatever_is_said_has_one_meaning_or_none(prompt: PromptName, text: str) -> None:
    verdict = read_verdict(prompt, text)
    assert verdict in (True, False, None)
    if verdict is not None:
        # A second verdict that contradicts makes it unclear; so does thinking that is not closed.
        other = {True: ("No", "FALSE"), False: ("Yes", "TRUE")}[verdict]
        contrary = rf" \boxed{{{other[0]}}}" + f"\n## Equivalence Judgement\n{other[1]}"
        assert read_verdict(prompt, text + contrary) is None
        assert read_verdict(prompt, text + "<think>") is None
        assert read_verdict(prompt, f"{text}</think>") is None


@given(st.text().filter(lambda text: "boxed" not in text), st.booleans())
def test_prose_around_a_box_does_not_matter(text: str, right: bool) -> None:
    prose = text.replace("<think>", "").replace("</think>", "")
    box = r"\boxed{Yes}" if right else r"\boxed{No}"
    assert read_verdict("answer", f"{prose}\n{box}\n") is right
