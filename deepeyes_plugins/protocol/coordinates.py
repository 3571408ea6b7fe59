"""Coordinate systems of positions in images."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Coordinates(StrEnum):
    """Coordinate system of a model's positions.

    DeepEyes and Qwen2.5-VL count pixels; Qwen3-VL divides each side of the image into a thousand,
    whatever its size.
    """

    PIXELS = "pixels"
    THOUSANDTHS = "thousandths"

    def box_in_pixels(self, box: Sequence[float], width: int, height: int) -> list[float]:
        """Convert ``[x1, y1, x2, y2]`` to pixels of an image of ``width`` x ``height``."""
        if self is Coordinates.PIXELS:
            return list(box)
        return [value * side / 1000 for value, side in zip(box, (width, height) * 2, strict=True)]

    @property
    def description(self) -> str:
        """Description for messages and prompts."""
        if self is Coordinates.PIXELS:
            return "in pixels of the original image"
        return "in thousandths of the image's width (x) and height (y), from 0 to 1000"
