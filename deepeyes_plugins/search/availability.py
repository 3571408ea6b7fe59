"""Availability of the search tools by benchmark and data source."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

SEARCH_TOOLS = ("search", "image_search")
"""Names of the tools that ``search.policy`` switches."""

EVALUATION: Mapping[str, bool] = {
    "*fvqa*": True,
    "*infoseek*": True,
    "*mmsearch*": True,
    "*simplevqa*": True,
    "*": False,
}
"""Published rules of DeepEyesV2's evaluation: only the search benchmarks have the search tools
(Visual-Agent/DeepEyesV2, issue 30). The first pattern that matches decides."""


def search_is_on(data_source: str, rules: Mapping[str, bool]) -> bool:
    """Return whether a task has the search tools.

    Args:
        data_source: ``Task.data_source``, the name of a training set or benchmark.
        rules: Patterns, the first that matches decides; without a match, search is on. In training
            those of ``search.policy`` in agent.yaml, in evaluation followed by :data:`EVALUATION`.
    """
    name = data_source.casefold()
    for pattern, on in rules.items():
        if fnmatch.fnmatchcase(name, pattern.casefold()):
            return on
    return True
