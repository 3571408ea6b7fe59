"""The ``deepeyes`` command."""
