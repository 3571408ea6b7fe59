"""No regular expression of the package takes more than linear time, whatever a model writes.

Every pattern is found in the source and attacked with texts that are derived from it: what leads to
each repeated part, then many of what the pattern accepts anywhere, and an end that does not match.
A new pattern is attacked without being listed.
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice, product
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pytest
import yaml

from deepeyes_plugins.files import read_json
from deepeyes_plugins.remote.redaction import _spellings, is_secret
from deepeyes_plugins.rewards.guards import lists_alternatives, speaks_to_judge
from deepeyes_plugins.rewards.mathematics import mathematics_verdict
from deepeyes_plugins.rewards.rules import rule_accuracy
from deepeyes_plugins.search.segmentation import document_terms
from deepeyes_plugins.settings import load_yaml
from eval_plugins.report.writing import _streams, segments

ROOT = Path(__file__).parents[1]
SHORT, LONG = (200, 500, 1_000), 4_000
"""Characters of a text; the short ones are within the limits of readers that have one."""
LITTLE = 0.005
"""Seconds that no linear reader takes for a long text, and each quadratic one does."""
ATTACKS, ATTACKS_OF_READERS = 60, 4
"""Texts per pattern. Readers see the texts of all patterns of their module."""

_ALTERNATIVES = (
    lambda text: lists_alternatives(text, "7"),
    lambda text: lists_alternatives(text, "B"),
)
_VALUES = (
    lambda text: rule_accuracy(text, "7"),
    lambda text: mathematics_verdict(text, r"\frac{1}{2}"),
)


def redacted(text: str) -> str:
    """Search a text for a secret, however it is spelled."""
    return "".join(spelling.text.sub("*", text) for spelling in _spellings("a1%&=:/\\ a1%&=:/"))


READERS: dict[str, tuple[Callable[[str], object], ...]] = {
    "deepeyes_plugins/remote/redaction.py": (redacted, is_secret),
    "deepeyes_plugins/rewards/guards.py": (*_ALTERNATIVES, speaks_to_judge),
    "deepeyes_plugins/rewards/latex.py": _VALUES,
    "deepeyes_plugins/rewards/mathematics.py": _VALUES,
    "deepeyes_plugins/rewards/rules.py": _VALUES,
    "deepeyes_plugins/rewards/units.py": _VALUES,
    "deepeyes_plugins/rewards/values.py": _VALUES,
    "deepeyes_plugins/search/segmentation.py": (document_terms,),
}
"""Modules whose patterns see texts as functions pass them on: shortened, or without long blanks."""

ANYTHING = re.compile(r"[a1%&=:/\\ \n]*x")
"""Stands for a pattern that is made while the program runs."""

METHODS = {"search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}


def is_pattern(node: ast.AST) -> bool:
    """Whether a node is a call of a function of ``re`` with a pattern."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in METHODS | {"compile"}
    )


def found_in(path: Path) -> Iterator[tuple[re.Pattern[Any], set[str]]]:
    """Yield the patterns of a module, each with the methods that are called on it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names: dict[ast.AST, str] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names |= dict.fromkeys(ast.walk(statement), statement.targets[0].id)
    constants = constants_of(tree)
    attributes = {each.attr for each in ast.walk(tree) if isinstance(each, ast.Attribute)}
    called = attributes & METHODS - {"split"} or {"search"}
    for node in filter(is_pattern, ast.walk(tree)):
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        name, methods = names.get(node, ""), {node.func.attr}
        if name:
            methods = {
                each.attr
                for each in ast.walk(tree)
                if isinstance(each, ast.Attribute)
                and isinstance(each.value, ast.Name)
                and each.value.id == name
            }
        known = constants.get(name) if name else value_of(node, constants)
        assert known is not None or str(path) in READERS, (
            f"{path}:{node.lineno}: a pattern that is made"
        )
        for pattern in known if isinstance(known, tuple) else [known or ANYTHING]:
            if isinstance(pattern, tuple):  # With what belongs to it.
                pattern = next(each for each in pattern if isinstance(each, re.Pattern))
            if isinstance(pattern, re.Pattern):
                yield pattern, (methods & METHODS) or called


def constants_of(tree: ast.Module) -> dict[str, Any]:
    """The constants of a module, without importing what it imports."""
    constants: dict[str, Any] = {"re": re, "IMAGE_PLACEHOLDER": "<image>"}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            with suppress(Exception):
                exec(compile(ast.Module([statement], []), "constants", "exec"), constants)
    return constants


def value_of(call: ast.Call, constants: dict[str, Any]) -> re.Pattern[Any] | None:
    with suppress(Exception):
        return re.compile(eval(ast.unparse(call.args[0]), constants))
    return None


_CATEGORIES = {"DIGIT": "1", "SPACE": " ", "WORD": "a"}
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


def accepted(kind: Any, value: Any) -> list[str]:
    """Characters that a part of a pattern accepts; empty if it is not a single character."""
    if kind is _constants.LITERAL:
        return [chr(value)]
    if kind in (_constants.ANY, _constants.NOT_LITERAL):
        return ["x"]
    if kind is not _constants.IN:
        return []
    listed = []
    for each, of in value:
        if each is _constants.LITERAL:
            listed.append(chr(of))
        elif each is _constants.RANGE:
            listed.append(chr(of[0]))
        elif each is _constants.CATEGORY:
            listed.append(_CATEGORIES.get(str(of).removeprefix("CATEGORY_"), "."))
    if value[0][0] is _constants.NEGATE:
        return [one for one in "x .1<" if one not in listed]
    return listed


def below(kind: Any, value: Any) -> list[Any]:
    """The parts of a part."""
    if kind in _REPEATS:
        return [value[2]]
    if kind is _constants.SUBPATTERN:
        return [value[3]]
    if kind is _constants.BRANCH:
        return list(value[1])
    if kind in (_constants.ASSERT, _constants.ASSERT_NOT):
        return [value[1]]
    return [value] if kind is _constants.ATOMIC_GROUP else []


def example(parts: Any) -> str:
    """A short text that a sequence of parts matches."""
    text = ""
    for kind, value in parts:
        if kind in (_constants.ASSERT, _constants.ASSERT_NOT):
            continue
        inner = accepted(kind, value)[:1] or [example(part) for part in below(kind, value)[:1]]
        text += "".join(inner) * (max(1, value[0]) if kind in _REPEATS else 1)
    return text


def leads(parts: Any, before: str = "") -> Iterator[str]:
    """Texts that lead to each repeated part."""
    for number, (kind, value) in enumerate(parts):
        here = before + example(list(parts)[:number])
        if kind in _REPEATS:
            yield here
        for part in below(kind, value):
            yield from leads(part, here)
    yield before + example(parts)
    yield before + example(list(parts)[:-1])


def repeated(parts: Any) -> Iterator[str]:
    """What a pattern repeats, and each character that it accepts."""
    for kind, value in parts:
        if kind in _REPEATS:
            yield example(value[2])
        for part in below(kind, value):
            yield from repeated(part)
        yield from accepted(kind, value)[:8]


def attacks(pattern: re.Pattern[Any], count: int) -> Iterator[Callable[[int], str | bytes]]:
    """Texts of any size that are hard for a pattern."""
    as_text = str.encode if isinstance(pattern.pattern, bytes) else str
    flags = pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else pattern.flags
    tree = _parser.parse(pattern.pattern, flags)
    starts = dict.fromkeys(("", *leads(tree)))
    pumps = dict.fromkeys(("\n", " ", "\\", *filter(None, repeated(tree))))
    for pump, start in islice(product(pumps, starts), count):
        yield partial(pumped, start, pump, as_text)
        yield partial(pumped, "", start + pump, as_text)


def pumped(start: str, pump: str, as_text: Callable[[str], Any], size: int) -> Any:
    return as_text(start + pump * (size // len(pump)) + "\0")


def seconds(read: Callable[[Any], object], text: str | bytes) -> float:
    started = time.thread_time()
    read(text)
    return time.thread_time() - started


def assert_linear(read: Callable[[Any], object], text: Callable[[int], Any]) -> None:
    for size in SHORT:
        assert seconds(read, text(size)) < 0.5, text(20)
    if seconds(read, text(LONG)) > LITTLE:
        once, twice = (
            min(seconds(read, text(size)) for _ in range(3)) for size in (LONG, 2 * LONG)
        )
        assert twice <= 2.5 * once, f"{text(40)!r}: {once:.3f} s, twice the text {twice:.3f} s"


def method(pattern: re.Pattern[Any], name: str) -> Callable[[Any], object]:
    if name in ("sub", "subn"):
        return lambda text: getattr(pattern, name)(text[:0], text)
    if name == "finditer":
        return lambda text: sum(1 for _ in pattern.finditer(text))
    return getattr(pattern, name)  # type: ignore[no-any-return]


MODULES = sorted(
    str(path.relative_to(ROOT))
    for package in ("deepeyes_plugins", "eval_plugins")
    for path in (ROOT / package).rglob("*.py")
    if any(map(is_pattern, ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))))
)


@pytest.mark.parametrize("module", MODULES)
def test_patterns_take_linear_time(module: str) -> None:
    readers = READERS.get(module)
    for pattern, methods in found_in(Path(module)):
        used = readers or [method(pattern, name) for name in sorted(methods)]
        for text, read in product(
            attacks(pattern, ATTACKS_OF_READERS if readers else ATTACKS), used
        ):
            assert_linear(read, text)


@pytest.mark.parametrize("fill", ["\n", "```\n", "\\", "<think>", "<code>\n```python\n\n"])
def test_the_frames_of_a_report_are_read_in_linear_time(fill: str) -> None:
    head = "Code execution result:\nstdout:\n```\n"
    assert_linear(lambda text: (_streams(head + text), segments(text)), lambda n: fill * n)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_without_end_is_invalid_json_and_yaml(opening: str) -> None:
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        read_json(opening * 100_000)
    with pytest.raises(yaml.YAMLError):
        load_yaml(opening * 1_500)
    mathematics_verdict("(" * 900, "[" * 900)
