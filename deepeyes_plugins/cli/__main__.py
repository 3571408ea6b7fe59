"""``python -m deepeyes_plugins.cli`` is ``deepeyes``."""

from deepeyes_plugins.cli.main import app

app(prog_name="deepeyes")
