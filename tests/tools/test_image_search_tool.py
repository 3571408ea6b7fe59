"""The image search tool: what the model reads, how often it may ask, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.rollout import Observation, Task
from deepeyes_plugins.search.contracts import ImageResult
from deepeyes_plugins.search.image_cache import ImageCacheWriter
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.image_search import ImageSearchTool
from deepeyes_plugins.tools.resources import Resources


def picture(colours: tuple[str, str] = ("red", "blue")) -> Image.Image:
    """Two halves."""
    image = Image.new("RGB", (200, 100), colours[0])
    image.paste(Image.new("RGB", (100, 100), colours[1]), (100, 0))
    return image


THUMBNAIL = EncodedImage.from_pil(Image.new("RGB", (64, 48), "green"))
QUESTION = EncodedImage.from_pil(picture())
LEFT_HALF = EncodedImage.from_pil(picture().crop((0, 0, 100, 100)))

Make = Callable[..., ImageSearchTool]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    path = tmp_path / "cache.sqlite"
    with ImageCacheWriter(path) as writer:
        writer.answer(
            "q1", [ImageResult("A <image> panda", THUMBNAIL), ImageResult("Another", None)]
        )
        writer.answer("crop", [ImageResult("Red", THUMBNAIL)])
        writer.answer("long", [ImageResult("x" * 500, THUMBNAIL)] * 40)
        writer.answer("nothing", [])
        writer.answer("odd", [ImageResult("Odd", EncodedImage(b"no image"))])
        writer.question("crop", LEFT_HALF)

    def make(**search: Any) -> ImageSearchTool:
        search.setdefault("image_providers", {"cache": {"path": str(path)}})
        return ImageSearchTool(Resources(AgentSettings(search=search)))  # type: ignore[arg-type]

    return make


async def ask(
    tool: ImageSearchTool,
    name: str = "q1",
    arguments: Mapping[str, Any] = {},
    image: EncodedImage | None = QUESTION,
    data_source: str = "",
) -> Observation:
    parts = ("Who?",) if image is None else (image, "Who?")
    await tool.open(Task(name, (Message("user", parts),), data_source=data_source))
    return await tool.call(arguments)


async def test_the_model_reads_titles_and_sees_thumbnails(make: Make) -> None:
    observation = await ask(make())
    assert observation.parts == (
        "<tool_response>\nA Google image search for the image found 2 results:\n\n"
        "## Web Results\n1. ",
        THUMBNAIL,
        "\n[A < image> panda] \n\n\n2. \n[Another] \n\n</tool_response>",
    )
    assert observation.error is None
    assert observation.figures == {"cache_hits": 0, "found": 1, "results": 2, "images": 1}


async def test_nothing_found_is_an_answer(make: Make) -> None:
    for name in ("nothing", "unheard of"):
        observation = await ask(make(), name)
        assert "found 0 results" in str(observation.parts[0])
        assert observation.error is None


async def test_once_per_trajectory(make: Make) -> None:
    tool = make()
    await ask(tool)
    again = await tool.call({})
    assert again.error == "image_search works at most once per question; go on without it"
    assert (await ask(tool)).error is None, "the next trajectory asks anew"


@pytest.mark.parametrize("times", [0, 3])
async def test_as_often_as_the_settings_say(make: Make, times: int) -> None:
    tool = make(image_searches=times)
    await tool.open(Task("q1", (Message("user", (QUESTION,)),)))
    answers = [await tool.call({}) for _ in range(times + 1)]
    assert [answer.error is None for answer in answers] == [True] * times + [False]


async def test_arguments_are_ignored_by_default(make: Make) -> None:
    observation = await ask(make(), arguments={"region": [0, 0, 100, 100], "query": "x"})
    assert "found 2 results" in str(observation.parts[0])
    assert make().schema["properties"] == {}


async def test_a_region_is_searched_for_where_that_is_on(make: Make) -> None:
    tool = make(image_region=True)
    assert "region" in tool.schema["properties"]
    observation = await ask(tool, arguments={"region": [0, 0, 100, 100]})
    assert "[Red]" in str(observation.parts[-1])


@pytest.mark.parametrize(
    "region", [[0, 0, 5, 5], [1, 2, 3], "left", [0, 0, float("nan"), 5], [500, 500, 600, 600]]
)
async def test_a_wrong_region_is_explained_and_not_counted(make: Make, region: Any) -> None:
    tool = make(image_region=True)
    observation = await ask(tool, arguments={"region": region})
    assert observation.error is not None and observation.error.startswith("region ")
    assert not observation.infrastructure
    assert (await tool.call({})).error is None


async def test_a_question_without_an_image_says_so(make: Make) -> None:
    observation = await ask(make(), image=None)
    assert observation.error == "the question has no image to search for"


async def test_a_broken_image_is_refused(make: Make) -> None:
    observation = await ask(make(), "unheard of", image=EncodedImage(b"broken"))
    assert observation.parts == (
        "<tool_response>\nError: the image cannot be searched for\n</tool_response>",
    )


async def test_what_the_policy_switches_off_says_so(make: Make) -> None:
    observation = await ask(make(policy={"chartqa*": False}), data_source="ChartQA_TEST")
    assert observation.error is not None and "switched off" in observation.error


async def test_without_a_provider_the_model_need_not_try_again(make: Make) -> None:
    tool = make(image_providers={})
    for _ in range(2):  # A search that did not come about is not counted.
        observation = await ask(tool)
        assert "the tool image_search is not configured; answer without it" in str(
            observation.parts
        )
        assert observation.infrastructure
        assert observation.error is not None and "prepare search-cache" in observation.error


async def test_titles_have_their_limits(make: Make) -> None:
    observation = await ask(make(title_characters=100, total_characters=1000, count=40), "long")
    text = "".join(part for part in observation.parts if isinstance(part, str))
    assert "found 10 results" in text
    assert len(text) < 1500
    assert len([part for part in observation.parts if isinstance(part, EncodedImage)]) == 10


async def test_a_thumbnail_that_cannot_be_decoded_is_left_out(make: Make) -> None:
    observation = await ask(make(), "odd")
    assert "1. \n[Odd]" in str(observation.parts[0])
