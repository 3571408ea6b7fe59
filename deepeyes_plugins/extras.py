"""Install command of this package's extras.

The package may not come from a package index, so the command uses the origin that pip recorded
(PEP 610, ``direct_url.json``).
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "deepeyes-plugins"


def install_command(extra: str = "") -> str:
    """Return the command that installs ``extra``, or without one the package itself."""
    extras = f"[{extra}]" if extra else ""
    in_a_checkout = f"pip install '.{extras}' in a checkout of {NAME}"
    try:
        record = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return in_a_checkout
    if record is None:
        return f"pip install '{NAME}{extras}'"
    origin: dict[str, Any] = json.loads(record)
    url = origin["url"]
    if vcs := origin.get("vcs_info"):
        return f"pip install '{NAME}{extras} @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
    path = Path(url2pathname(urlsplit(url).path))
    if url.startswith("file:") and not path.exists():
        return in_a_checkout
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{path}{extras}'"
    return f"pip install '{NAME}{extras} @ {url}'"
