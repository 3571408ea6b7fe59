"""The tools of DeepEyes V1: zoom and rotate."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.coordinates import Coordinates
from deepeyes_plugins.rollout import Observation, Task
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.image_tools import BoxError, RotateTool, ZoomTool, clamp_box
from deepeyes_plugins.tools.resources import Resources

WIDTH, HEIGHT = 400, 300
SMALL = EncodedImage.from_pil(Image.new("RGB", (32, 32), "red"))


def picture() -> EncodedImage:
    """White with a red square from (100, 50) to (150, 100)."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    image.paste("red", (100, 50, 150, 100))
    return EncodedImage.from_pil(image)


async def call(
    kind: type[ZoomTool | RotateTool],
    arguments: Mapping[str, Any],
    *images: EncodedImage,
    coordinates: Coordinates = Coordinates.PIXELS,
) -> Observation:
    tool = kind(Resources(AgentSettings(coordinates=coordinates)))
    await tool.open(Task("task-1", (Message("user", images),)))
    return await tool.call(arguments)


async def zoom(box: Any, coordinates: Coordinates = Coordinates.PIXELS) -> Observation:
    arguments = {"bbox_2d": box, "label": "square"}
    return await call(ZoomTool, arguments, picture(), coordinates=coordinates)


async def rotate(angle: Any) -> Observation:
    return await call(RotateTool, {"angle": angle}, picture())


class TestZoom:
    async def test_a_box_in_thousandths_of_the_sides(self) -> None:
        observation = await zoom([250, 167, 375, 333], Coordinates.THOUSANDTHS)
        [image] = [part for part in observation.parts if isinstance(part, EncodedImage)]
        # From (100, 50.1) to (150, 99.9), grown to whole pixels.
        assert image.size == (50, 50)
        assert set(image.pil().getdata()) == {(255, 0, 0)}

    async def test_an_image_of_16_bits_keeps_its_range(self) -> None:
        file = io.BytesIO()
        Image.new("I;16", (100, 100), 0x8000).save(file, "PNG")
        observation = await call(
            ZoomTool, {"bbox_2d": [0, 0, 50, 50]}, EncodedImage(file.getvalue())
        )
        [image] = [part for part in observation.parts if isinstance(part, EncodedImage)]
        assert set(image.pil().getdata()) == {(128, 128, 128)}

    async def test_the_rules_for_boxes_are_in_pixels_whatever_the_model_counts_in(self) -> None:
        observation = await zoom([0, 0, 50, 500], Coordinates.THOUSANDTHS)  # 20 x 150 pixels
        assert observation.error is not None and "too small" in observation.error

    @pytest.mark.parametrize(
        ("coordinates", "words"),
        [(Coordinates.PIXELS, "pixels of the original"), (Coordinates.THOUSANDTHS, "0 to 1000")],
    )
    def test_the_schema_says_what_the_numbers_are(
        self, coordinates: Coordinates, words: str
    ) -> None:
        tool = ZoomTool(Resources(AgentSettings(coordinates=coordinates)))
        assert words in tool.schema["properties"]["bbox_2d"]["description"]

    async def test_the_observation(self) -> None:
        observation = await zoom([100, 50, 150, 100])
        before, image, after = observation.parts
        assert before == "<tool_response>"
        assert isinstance(image, EncodedImage)
        assert image.size == (50, 50)
        assert set(image.pil().getdata()) == {(255, 0, 0)}
        assert isinstance(after, str)
        assert after.endswith("</tool_response>")
        assert observation.error is None

    async def test_a_box_is_clamped_to_the_image(self) -> None:
        (image,) = (await zoom([-50, 200, 9999, 9999])).message.images
        assert image.size == (WIDTH, HEIGHT - 200)

    async def test_numbers_may_be_fractions_or_strings(self) -> None:
        (image,) = (await zoom(["100", 50.4, "149.5", 100])).message.images
        assert image.size == (50, 50)

    @pytest.mark.parametrize(
        ("box", "told"),
        [
            (None, "list of four numbers"),
            ("100, 50, 150, 100", "list of four numbers"),
            ([100, 50, 150], "list of four numbers"),
            ({"x1": 1}, "list of four numbers"),
            ([100, 50, 150, None], "four finite numbers"),
            ([100, 50, 150, "wide"], "four finite numbers"),
            ([100, 50, 150, [100]], "four finite numbers"),
            ([True, 0, 150, 100], "four finite numbers"),
            ([100, 50, float("nan"), 100], "four finite numbers"),
            ([100, 50, float("inf"), 100], "four finite numbers"),
            ([100, 50, "inf", 100], "four finite numbers"),
            ([150, 50, 100, 100], "no width"),
            ([100, 50, 100, 100], "no width"),
            ([50, 100, 150, 100], "no height"),
            ([500, 50, 600, 100], "outside the image of 400 x 300 pixels"),
            ([-50, 50, 0, 100], "outside the image"),
            ([100, 50, 130, 100], "too small"),
            ([100, 50, 150, 60], "too small"),
        ],
    )
    async def test_a_wrong_box_is_told(self, box: Any, told: str) -> None:
        observation = await zoom(box)
        assert observation.message.text.startswith("Error: ")
        assert told in observation.message.text
        assert observation.error
        assert not observation.infrastructure
        assert not observation.message.images

    async def test_a_number_that_no_float_can_hold(self) -> None:
        assert "four finite numbers" in (await zoom([100, 50, 10**400, 100])).message.text

    async def test_no_box(self) -> None:
        assert (await call(ZoomTool, {}, picture())).error

    async def test_a_question_without_image(self) -> None:
        assert (await call(ZoomTool, {"bbox_2d": [0, 0, 50, 50]})).error

    async def test_the_first_image_of_several(self) -> None:
        other = EncodedImage.from_pil(Image.new("RGB", (50, 50)))
        observation = await call(ZoomTool, {"bbox_2d": [0, 0, 9999, 9999]}, picture(), other)
        assert observation.message.images[0].size == (WIDTH, HEIGHT)


class TestBoxRules:
    def test_shorter_side(self) -> None:
        """Over 30 px passes, 30 does not; so the growth to 28 px can never be needed."""
        assert clamp_box([0, 0, 31, 100], 400, 300) == (0, 0, 31, 100)
        for side in (30, 28, 27, 1):
            with pytest.raises(BoxError, match="too small"):
                clamp_box([0, 0, side, 100], 400, 300)

    def test_rules_hold_before_rounding(self) -> None:
        assert clamp_box([0.9, 0, 31, 100], 400, 300) == (0, 0, 31, 100)
        with pytest.raises(BoxError, match="too small"):
            clamp_box([0.9, 0, 30.9, 100], 400, 300)

    def test_shorter_side_within_the_image(self) -> None:
        with pytest.raises(BoxError, match="too small"):
            clamp_box([-100, 0, 20, 100], 400, 300)

    def test_aspect_ratio(self) -> None:
        assert clamp_box([0, 0, 4000, 40], 9000, 9000) == (0, 0, 4000, 40)
        with pytest.raises(BoxError, match="elongated"):
            clamp_box([0, 0, 4001, 40], 9000, 9000)

    coordinate = st.integers(-500, 1500) | st.floats(-500, 1500)

    @given(st.lists(coordinate, min_size=4, max_size=4), st.integers(1, 1000), st.integers(1, 1000))
    def test_a_box_lies_within_the_image_or_is_refused(
        self, box: list[float], width: int, height: int
    ) -> None:
        try:
            x1, y1, x2, y2 = clamp_box(box, width, height)
        except BoxError:
            return
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert min(x2 - x1, y2 - y1) > 30
        assert clamp_box([x1, y1, x2, y2], width, height) == (x1, y1, x2, y2)

    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda children: (
            st.lists(children, max_size=5) | st.dictionaries(st.text(max_size=3), children)
        ),
        max_leaves=8,
    )

    @settings(max_examples=50)
    @given(json_value)
    @example(10**400)
    def test_whatever_the_model_says_is_an_observation(self, value: Any) -> None:
        async def call_both() -> list[Observation]:
            return [
                await call(ZoomTool, {"bbox_2d": value}, SMALL),
                await call(RotateTool, {"angle": value}, SMALL),
            ]

        for observation in asyncio.run(call_both()):
            assert observation.message.images or observation.error


class TestRotate:
    @pytest.mark.parametrize(
        ("angle", "size"),
        [(90, (300, 400)), (-90, (300, 400)), (180, (400, 300)), (720.0, (400, 300))],
    )
    async def test_nothing_is_cut_off(self, angle: float, size: tuple[int, int]) -> None:
        (image,) = (await rotate(angle)).message.images
        assert image.size == size

    async def test_anticlockwise(self) -> None:
        (image,) = (await rotate(90)).message.images
        assert image.pil().getpixel((75, WIDTH - 125)) == (255, 0, 0)

    @pytest.mark.parametrize("angle", [None, "90", True, float("nan"), float("inf"), [90]])
    async def test_a_wrong_angle_is_told(self, angle: Any) -> None:
        observation = await rotate(angle)
        assert observation.message.text.startswith("Error: angle must be")
        assert observation.error
