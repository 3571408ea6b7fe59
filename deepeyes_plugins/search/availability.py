"""Where the search tools work: by benchmark and by data source."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

SEARCH_TOOLS = ("search", "image_search")
"""What the model calls the tools that the policy is about."""

EVALUATION: Mapping[str, bool] = {
    "*fvqa*": True,
    "*infoseek*": True,
    "*mmsearch*": True,
    "*simplevqa*": True,
    "*": False,
}
"""In the evaluation of DeepEyesV2 only the search benchmarks have the search tools
(Visual-Agent/DeepEyesV2, issue 30). Patterns with ``*``; the first that fits decides."""


def search_is_on(data_source: str, policy: Mapping[str, bool]) -> bool:
    """Tell whether the search tools work for a task.

    Args:
        data_source: ``Task.data_source``: a training set's name, or a benchmark's.
        policy: Rules; in training those of ``search.policy`` in agent.yaml alone, since there
            every data source has all tools (Visual-Agent/DeepEyesV2), in evaluation those and
            then :data:`EVALUATION`.
    """
    name = data_source.casefold()
    for pattern, on in policy.items():
        if fnmatch.fnmatchcase(name, pattern.casefold()):
            return on
    return True
