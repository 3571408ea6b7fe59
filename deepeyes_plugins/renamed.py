"""Renamed settings, arguments and commands: the old name works for one version and warns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from pydantic import model_validator

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str) -> None:
    """Warn that a name is deprecated, and say what to use instead."""
    warnings.warn(
        f"{old} is deprecated and will be removed in the next version: use {new}",
        FutureWarning,
        stacklevel=3,
    )


def rename_keys(
    values: Mapping[str, Any], renamed: Mapping[str, str], owner: str
) -> dict[str, Any]:
    """Replace old keys by new ones, each with a warning that names the new one.

    Args:
        values: Keys and values as a user gave them.
        renamed: New keys by old key.
        owner: The settings section or function that the keys belong to, for messages.

    Raises:
        ValueError: An old key and its new one are both given.
    """
    result = dict(values)
    for old, new in renamed.items():
        if old not in result:
            continue
        if new in result:
            raise ValueError(
                f"{owner}.{old} is the old name of {owner}.{new} and both are given: remove {old}"
            )
        warn_renamed(f"{owner}.{old}", f"{owner}.{new}")
        result[new] = result.pop(old)
    return result


def renamed_keys(section: str, **renamed: str) -> Any:
    """Return a validator that lets a settings model accept old keys.

    Args:
        section: Name of the model's section in agent.yaml, for messages.
        **renamed: New key by old key.

    Example:
        >>> class Limits(BaseModel):
        ...     turn_timeout: float = 7200.0
        ...     _renamed = renamed_keys("limits", engine_patience="turn_timeout")
    """

    def rename(cls: type, values: Any) -> Any:
        return rename_keys(values, renamed, section) if isinstance(values, Mapping) else values

    return model_validator(mode="before")(rename)


def renamed_arguments(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that lets a function accept old keyword arguments.

    Args:
        **renamed: New name by old name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: Any, **keywords: Any) -> R:
            return function(*args, **rename_keys(keywords, renamed, function.__name__))

        return call

    return decorate
