"""Effective tool calls of a trajectory."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache

from deepeyes_plugins.protocol.actions import CodeAction, parse_action
from deepeyes_plugins.rollout.trajectory import Trajectory, TurnRecord

SEARCH_TOOLS = ("search", "image_search")

_INERT_CALLS = ("print",)


@lru_cache(maxsize=256)  # Called twice per score, and rollouts of a group often run the same code.
def computes(code: str) -> bool:
    """Return whether Python ``code`` does more than state constants.

    Code that only consists of comments, ``pass``, imports, constants, definitions, branches under
    a false constant, and prints or assignments of constants or strings built from them does not
    compute. Code that reads a name not set to a constant, calls a function other than ``print`` or
    calculates with numbers does. Code that does not compile does not.
    """
    try:
        tree = ast.parse(code)
    # A null byte is a ValueError; nesting beyond the parser's depth the last two.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    constants: set[str] = set()
    try:
        return any(_acts(statement, constants) for statement in _live(tree.body))
    except RecursionError:
        return True


def _live(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that can run, nested ones after their owner."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If | ast.While) and isinstance(statement.test, ast.Constant):
            yield from _live(statement.body if statement.test.value else statement.orelse)
            continue
        yield statement
        for field in ("body", "orelse", "finalbody"):
            yield from _live(getattr(statement, field, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _live(handler.body)


def _acts(statement: ast.stmt, constants: set[str]) -> bool:
    """Return whether a statement computes, without the statements inside."""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        value = statement.value
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if value is None or _constant(value, constants):
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            constants |= names
            return len(names) < len(targets)
        return True
    if isinstance(statement, ast.Expr):
        return not _inert(statement.value, constants)
    if isinstance(statement, ast.For | ast.AsyncFor):
        return not _constant(statement.iter, constants)
    return isinstance(
        statement,
        ast.AugAssign | ast.Assert | ast.Raise | ast.With | ast.AsyncWith | ast.Match | ast.Delete,
    ) or (isinstance(statement, ast.If | ast.While) and not _constant(statement.test, constants))


def _inert(value: ast.expr, constants: set[str]) -> bool:
    if (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id in _INERT_CALLS
    ):
        arguments = [*value.args, *(keyword.value for keyword in value.keywords)]
        return all(_constant(argument, constants) for argument in arguments)
    return _constant(value, constants)


def _constant(value: ast.expr, constants: set[str]) -> bool:
    """Return whether an expression is a literal, a string of literals, or a name of one."""
    if isinstance(value, ast.Constant):
        return True
    if isinstance(value, ast.Name):
        return value.id in constants
    if isinstance(value, ast.UnaryOp):
        return _constant(value.operand, constants)
    if isinstance(value, ast.BinOp):
        sides = (value.left, value.right)
        texts = any(_is_text(side) for side in sides)
        return texts and all(_constant(side, constants) for side in sides)
    if isinstance(value, ast.JoinedStr):
        return all(_constant(part, constants) for part in value.values)
    if isinstance(value, ast.FormattedValue):
        return _constant(value.value, constants)
    if isinstance(value, ast.List | ast.Tuple | ast.Set):
        return all(_constant(element, constants) for element in value.elts)
    if isinstance(value, ast.Dict):
        entries = [*value.keys, *value.values]
        return all(entry is None or _constant(entry, constants) for entry in entries)
    return False


def _is_text(value: ast.expr) -> bool:
    if isinstance(value, ast.BinOp):
        return _is_text(value.left) or _is_text(value.right)
    return isinstance(value, ast.JoinedStr) or (
        isinstance(value, ast.Constant) and isinstance(value.value, str | bytes)
    )


def is_idle_code(turn: TurnRecord) -> bool:
    """Return whether a turn ran code that computes nothing."""
    if turn.action != "code":
        return False
    action = parse_action(turn.text)
    return isinstance(action, CodeAction) and not computes(action.code)


def effective_calls(trajectory: Trajectory) -> list[TurnRecord]:
    """Return the turns whose tool call counts for a bonus.

    A tool was called without an error, and code computes something.
    """
    return [
        turn
        for turn in trajectory.turns
        if turn.tool is not None
        and turn.error is None
        and not turn.infrastructure_error
        and not is_idle_code(turn)
    ]


def has_image(turn: TurnRecord) -> bool:
    """Return whether the observation of a turn has an image."""
    return any(part.image is not None for part in turn.observation or ())


def searched(trajectory: Trajectory) -> bool:
    """Return whether the trajectory called a search tool."""
    return any(name in SEARCH_TOOLS for name in trajectory.tool_calls)
