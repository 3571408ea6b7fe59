"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path

import deepeyes_plugins
from deepeyes_plugins.extras import install_command


def recipes_folder() -> Path:
    """The folder of recipes: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: The installation lacks them.
    """
    package = Path(deepeyes_plugins.__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no recipes in {package} or beside it; install the package again, with "
        f"--force-reinstall --no-deps: {install_command()}"
    )
