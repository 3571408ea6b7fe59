"""Where the search tools work: by benchmark and by data source."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

SEARCH_TOOLS = ("search", "image_search")
"""What the model calls the tools that the policy is about."""

PUBLISHED: Mapping[str, bool] = {
    # Training of DeepEyesV2: every data source has all tools.
    "perception": True,
    "reason": True,
    "search": True,
    # Its evaluation: off, except on the four search benchmarks.
    "*fvqa*": True,
    "*infoseek*": True,
    "*mmsearch*": True,
    "*simplevqa*": True,
    "*": False,
}
"""The published policy (Visual-Agent/DeepEyesV2: the training code, and issue 30 for evaluation).
Patterns with ``*``; the first that fits decides."""


def search_is_on(data_source: str, policy: Mapping[str, bool] = {}) -> bool:
    """Tell whether the search tools work for a task.

    Args:
        data_source: ``Task.data_source``: a training set's name, or a benchmark's. A task without
            one has the tools.
        policy: Rules that come before the published ones (``search.policy`` in agent.yaml).
    """
    if not data_source:
        return True
    name = data_source.casefold()
    for rules in (policy, PUBLISHED):
        for pattern, on in rules.items():
            if fnmatch.fnmatchcase(name, pattern.casefold()):
                return on
    return False
