"""Common parts of benchmark reports: environment and number format."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterable

import psutil


def machine(packages: Iterable[str]) -> dict[str, object]:
    """Describe the machine and the versions of some packages."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
        **{package: importlib.metadata.version(package) for package in packages},
    }


def number(value: float) -> str:
    """Format with three significant digits."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"
