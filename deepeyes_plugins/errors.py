"""Errors that every subpackage may raise."""

from __future__ import annotations

from deepeyes_plugins.printable import printable


class SettingsError(ValueError):
    """A setting is wrong; the message names the file, the key and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, lines=True))
