"""Tools of DeepEyes V1: zoom and rotate.

Boxes follow the rules of the V1 training code (Visual-Agent/DeepEyes): a box is clamped to the
image and refused if it is empty, its shorter side has 30 pixels or less, or its aspect ratio is
over 100.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, fit_for_model
from deepeyes_plugins.protocol.coordinates import Coordinates
from deepeyes_plugins.protocol.observations import defuse
from deepeyes_plugins.rollout.contracts import Observation, Task, Tool
from deepeyes_plugins.tools.resources import Resources

MINIMUM_BOX_SIDE = 30
MAXIMUM_BOX_ASPECT_RATIO = 100

_NEXT_STEP = (
    "Think first. Then call a tool again if a closer look is needed; otherwise write the answer "
    "in <answer> tags."
)


class BoxError(ValueError):
    """A box that cannot be cropped; the message is for the model."""


def clamp_box(
    box: Any,
    width: int,
    height: int,
    coordinates: Coordinates = Coordinates.PIXELS,
    name: str = "bbox_2d",
) -> tuple[int, int, int, int]:
    """Turn a model's box into one that can be cropped.

    Args:
        box: ``[x1, y1, x2, y2]``, numbers or strings of numbers.
        width: Width of the original image in pixels.
        height: Height of the original image in pixels.
        coordinates: Unit of the box.
        name: Name of the argument.

    Returns:
        The box within the image, checked and then rounded outward to whole pixels.

    Raises:
        BoxError: Not four finite numbers, empty, too small or too elongated.
    """
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise BoxError(f"{name} must be a list of four numbers [x1, y1, x2, y2]")
    numbers = [_coordinate(value, name) for value in box]
    left, top, right, bottom = coordinates.box_in_pixels(numbers, width, height)
    overlaps = left < width and right > 0 and top < height and bottom > 0
    if left < right and top < bottom and not overlaps:
        raise BoxError(f"{name} {box} is outside the image of {width} x {height} pixels")
    left, top, right, bottom = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if right <= left or bottom <= top:
        missing = "width (x2 must be greater than x1)" if right <= left else ""
        missing = missing or "height (y2 must be greater than y1)"
        raise BoxError(
            f"{name} {box} is empty: it has no {missing} within the image of {width} x {height} "
            "pixels"
        )
    shorter, longer = sorted((right - left, bottom - top))
    if shorter <= MINIMUM_BOX_SIDE:
        raise BoxError(f"{name} {box} is too small: each side must exceed {MINIMUM_BOX_SIDE} px")
    if longer / shorter > MAXIMUM_BOX_ASPECT_RATIO:
        raise BoxError(f"{name} {box} is too elongated (over {MAXIMUM_BOX_ASPECT_RATIO} : 1)")
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def _coordinate(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BoxError(f"{name} must hold four finite numbers")
    return number


class _ImageTool(Tool):
    """Base of tools that transform the first image of the question."""

    def __init__(self, resources: Resources) -> None:
        """Image tools need no shared resources."""
        del resources
        self._image: EncodedImage | None = None

    async def open(self, task: Task) -> None:
        """Store the question's first image."""
        self._image = task.images[0] if task.images else None

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Return the changed image, or an ``Error: …`` line."""
        if self._image is None:
            return _error("the question has no image")
        try:
            image = await asyncio.to_thread(self._changed, self._image, arguments)
        except ValueError as error:
            return _error(str(error))
        return Observation(tool_response_v1(image))

    def _changed(self, image: EncodedImage, arguments: Mapping[str, Any]) -> EncodedImage:
        return fit_for_model(EncodedImage.from_pil(self.transform(image.pil(), arguments)))

    @abstractmethod
    def transform(self, image: Image.Image, arguments: Mapping[str, Any]) -> Image.Image:
        """Return the new image.

        Raises:
            ValueError: The arguments are wrong; the message is for the model.
        """


def tool_response_v1(image: EncodedImage) -> tuple[str | EncodedImage, ...]:
    """Return the observation of DeepEyes V1: the image, then what to do next."""
    return ("<tool_response>", image, f"{_NEXT_STEP}</tool_response>")


def _error(reason: str) -> Observation:
    """Return the observation of a failed call, in DeepEyes V1 without tags."""
    return Observation((f"Error: {defuse(reason)}",), error=reason)


class ZoomTool(_ImageTool):
    """Crop a box of the original image."""

    name = "image_zoom_in_tool"

    def __init__(self, resources: Resources) -> None:
        """Use the unit of boxes in the settings."""
        super().__init__(resources)
        self._coordinates = resources.settings.coordinates
        self.schema = {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array",
                    "items": {"type": "number"},
                    "minItems": 4,
                    "maxItems": 4,
                    "description": f"[x1, y1, x2, y2] {self._coordinates.description}.",
                },
                "label": {"type": "string", "description": "What is in the box."},
            },
            "required": ["bbox_2d"],
        }

    def transform(self, image: Image.Image, arguments: Mapping[str, Any]) -> Image.Image:
        """Crop ``bbox_2d``."""
        return image.crop(clamp_box(arguments.get("bbox_2d"), *image.size, self._coordinates))


class RotateTool(_ImageTool):
    """Rotate the original image."""

    name = "image_rotate_tool"
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"angle": {"type": "number", "description": "Degrees, anticlockwise."}},
        "required": ["angle"],
    }

    def transform(self, image: Image.Image, arguments: Mapping[str, Any]) -> Image.Image:
        """Rotate by ``angle``, growing the canvas so that nothing is cut off."""
        angle = arguments.get("angle")
        if isinstance(angle, bool) or not isinstance(angle, int | float):
            raise ValueError("angle must be a number of degrees")
        angle %= 360  # also makes integers manageable that no float can hold
        if not math.isfinite(angle):
            raise ValueError("angle must be finite")
        return image.rotate(angle, expand=True)
