"""Text and image search as the model calls them. Without a provider they say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepeyes_plugins.protocol.observations import tool_response
from deepeyes_plugins.rollout.contracts import Observation, Tool
from deepeyes_plugins.tools.resources import Resources


class _UnconfiguredSearch(Tool):
    def __init__(self, resources: Resources) -> None:
        """No search provider can be configured in this version."""
        del resources

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Tell the model that it has to do without."""
        reason = f"the tool {self.name} is not configured; answer without it"
        return Observation(tool_response([f"Error: {reason}"]), error=reason)


class SearchTool(_UnconfiguredSearch):
    """Text search."""

    name = "search"
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to search for."}},
        "required": ["query"],
    }


class ImageSearchTool(_UnconfiguredSearch):
    """Search by the question's image."""

    name = "image_search"
