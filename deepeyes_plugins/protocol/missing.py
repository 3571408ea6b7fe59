"""Detection of missing values in data frames and files."""

from __future__ import annotations

from typing import Any

_PACKAGES = {"builtins", "decimal", "numpy", "pandas"}
"""Packages with such types; other objects may be slow to compare."""


def is_missing(value: Any) -> bool:
    """Return whether ``value`` is a missing value.

    Those are ``None``, NaN (of Python, NumPy, pandas or ``decimal``), ``pandas.NA`` and ``NaT``,
    and text without anything but white space. The texts ``nan`` and ``None`` are values: somebody
    wrote them.
    """
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    package = type(value).__module__.partition(".")[0]
    if package not in _PACKAGES or hasattr(value, "__len__"):  # An array compares its elements.
        return False
    try:
        return bool(value != value)  # Only NaN and NaT differ from themselves.
    except TypeError:  # pandas.NA has no truth value.
        return True


def text_of(value: Any) -> str:
    """Return ``value`` as a string, empty if it is missing."""
    return "" if is_missing(value) else str(value)
