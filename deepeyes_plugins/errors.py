"""Errors that every subpackage may raise."""

from __future__ import annotations


class SettingsError(ValueError):
    """A setting is wrong; the message names the file, the key and the reason."""
