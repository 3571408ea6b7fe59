"""A complete plugin: an agent that measures pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from deepeyes_plugins import hookimpl
from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError
from deepeyes_plugins.environments.presets import make_environment
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.protocol.observations import tool_response
from deepeyes_plugins.rewards.contracts import RewardFactory, RewardResources
from deepeyes_plugins.rollout import Observation, RewardResult, Task, Tool, Trajectory
from deepeyes_plugins.search.contracts import (
    SearchQuery,
    SearchResult,
    SearchResults,
    TextProviderFactory,
    TextSearchProvider,
)
from deepeyes_plugins.tools.resources import EnvironmentFactory, Resources, ToolFactory


class MeasureTool(Tool):
    """Tells the model how large an image of the question is."""

    name = "measure_image"
    schema = {
        "type": "object",
        "properties": {"image": {"type": "integer", "description": "Which image, from 1."}},
        "required": ["image"],
    }

    def __init__(self, resources: Resources) -> None:
        self._images: list[tuple[int, int]] = []

    async def open(self, task: Task) -> None:
        self._images = [image.size for image in task.images]

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        number = arguments.get("image")
        if not isinstance(number, int) or not 1 <= number <= len(self._images):
            reason = f"'image' is a number from 1 to {len(self._images)}"
            return Observation(tool_response([f"Error: {reason}"]), error=reason)
        width, height = self._images[number - 1]
        return Observation(tool_response([f"{width} x {height} pixels"]))


class SizeReward:
    """1 for the right size; each measurement costs a tenth."""

    parts = ("right", "cost")

    def __init__(self, resources: RewardResources) -> None:
        self._price = resources.plugins.get("example", {}).get("price", 0.1)

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        right = float(trajectory.answer == task.ground_truth)
        cost = self._price * trajectory.tool_calls.get(MeasureTool.name, 0)
        return RewardResult(right - cost, {"right": right, "cost": cost})


def question_and_answer(row: Mapping[str, Any]) -> Conversation:
    """Rows with ``question``, ``answer`` and ``image``."""
    try:
        turns = (("user", f"<image>{row['question']}"), ("assistant", str(row["answer"])))
        return Conversation(turns, (row["image"],))
    except KeyError as error:
        raise RowError(f"the row has no column {error}") from error


class PaperSizes(TextSearchProvider):
    """Finds what a sheet of paper measures."""

    name = "paper_sizes"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._sizes = {"A4": "210 x 297 mm", "A5": "148 x 210 mm", **options.get("sizes", {})}

    async def search(self, query: SearchQuery) -> SearchResults:
        found = [
            SearchResult(title=name, snippet=size)
            for name, size in self._sizes.items()
            if name in query.text
        ]
        return SearchResults(results=tuple(found[: query.count]))


@hookimpl
def register_tools(register: Callable[[str, ToolFactory], None]) -> None:
    register(MeasureTool.name, MeasureTool)


@hookimpl
def register_environments(register: Callable[[str, EnvironmentFactory], None]) -> None:
    dialect = Dialect(stop=("</tool_call>",))
    register("measuring", partial(make_environment, "measuring", dialect, (), 4))


@hookimpl
def register_rewards(register: Callable[[str, RewardFactory], None]) -> None:
    register("picture-size", SizeReward)


@hookimpl
def register_formatters(register: Callable[[str, Formatter], None]) -> None:
    register("question_and_answer", question_and_answer)


@hookimpl
def register_search_providers(register: Callable[[str, TextProviderFactory], None]) -> None:
    register(PaperSizes.name, PaperSizes)
