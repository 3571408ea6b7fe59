"""Tool for reading web pages; enabled by ``tools`` in agent.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepeyes_plugins.protocol.observations import defuse, tool_response
from deepeyes_plugins.rollout.contracts import Observation, Task, Tool
from deepeyes_plugins.search.contracts import SearchNotConfiguredError
from deepeyes_plugins.search.fetching import FetchError, FetchRefusedError
from deepeyes_plugins.tools.resources import Resources
from deepeyes_plugins.tools.search import SearchPolicy, not_configured, refusal, switched_off


class ReadPageTool(Tool):
    """Returns the main text of a page, for instance of a search result.

    A missing page is an observation, not an infrastructure error.
    """

    name = "read_page"
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "Address of the page, http or https."}
        },
        "required": ["url"],
    }

    def __init__(self, resources: Resources) -> None:

        self._search = resources.search
        self._policy = SearchPolicy(resources.settings.search)

    async def open(self, task: Task) -> None:
        """Look up whether search is on for the task."""
        self._policy.open(task)

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Read the page at ``arguments["url"]``."""
        if not self._policy.is_on:
            return switched_off(self.name)
        url = arguments.get("url")
        if not isinstance(url, str) or not url.strip():
            return refusal("the argument 'url' must be the address of a page")
        try:
            page = await self._search.pages.read(url.strip())
        except FetchRefusedError as error:
            return refusal(f"the page is not read: {error}")
        except FetchError as error:
            return refusal(f"the page cannot be read: {error}")
        except SearchNotConfiguredError as error:
            return not_configured(self.name, error)
        head = "\n".join(filter(None, (page.title, page.link, page.date)))
        return Observation(tool_response([defuse(f"{head}\n\n{page.text}")]))
