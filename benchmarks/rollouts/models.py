"""The tokenizer, processor and verl's token builder that the loop is measured with."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoProcessor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from rollouts.simulation import ANSWER, CALL

BOUNDS = {"shortest_edge": 56**2, "longest_edge": 1280 * 28**2}
"""Least and most pixels: up to 1,280 tokens an image."""


def make_builder() -> Any:
    """verl's builder for a Qwen2.5-VL with a processor of real sizes and a small vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_qwen2_5_vl(Path(folder), [CALL, ANSWER, "the value is"] * 2)
        processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.size = BOUNDS
    return create_continuous_token_builder(
        processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
    )


def photo(width: int, height: int, seed: int, kind: str = "JPEG") -> EncodedImage:
    """A picture with detail: it has the size in bytes of a photograph."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return EncodedImage(buffer.getvalue())


def figure(seed: int, side: int = 480) -> EncodedImage:
    """What a plot brings back: flat colours and lines, as PNG."""
    picture = Image.new("RGB", (side * 4 // 3, side), "white")
    for at in range(40):
        box = (at * 15, (at * 37 + seed * 11) % side, at * 15 + 9, side)
        picture.paste((at * 6, seed * 31 % 256, 90), box)
    return EncodedImage.from_pil(picture)
