"""The model sees the same pixels of a file in SFT as in reinforcement learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llamafactory.data.mm_plugin import get_mm_plugin
from PIL import Image
from transformers import AutoProcessor, Qwen2VLImageProcessor

from deepeyes_plugins.data.media import MediaRoot
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.transformers.images import image_bounds, model_image
from deepeyes_plugins.protocol.content import EncodedImage
from tests.llamafactory.conftest import Rows, tokenized, train_arguments, write_dataset
from tests.pictures import chart, unusual_pictures

PLUGINS = ("deepeyes_qwen2_vl", "deepeyes_qwen3_vl")
MOST_PIXELS = 512 * 512


@pytest.fixture(scope="module")
def processor(tiny_model_path: Path) -> Any:
    """With the bounds of Qwen2.5-VL, and LLaMA-Factory's on top."""
    loaded = AutoProcessor.from_pretrained(tiny_model_path)
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    loaded.image_processor = Qwen2VLImageProcessor(size=size)
    loaded.image_min_pixels, loaded.image_max_pixels = 32 * 32, MOST_PIXELS
    return loaded


@pytest.mark.parametrize("name", PLUGINS)
def test_same_pixels_for_the_same_file(processor: Any, tmp_path: Path, name: str) -> None:
    paths = unusual_pictures(tmp_path)
    with ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    packed = MediaRoot.open(tmp_path / "images.zip")
    images = [str(path) for path in paths] + [packed.locate(path.name) for path in paths]
    plugin = get_mm_plugin(name, image_token="<|image_pad|>", video_token="<|video_pad|>")

    seen = plugin.get_mm_inputs(images, [], [], [], [], [], [], processor)

    settings = {"min_pixels": 56**2, "max_pixels": MOST_PIXELS}
    bounds = image_bounds(processor.image_processor, settings)
    in_rl = [model_image(EncodedImage(path.read_bytes()), bounds) for path in paths] * 2
    expected = processor.image_processor(in_rl, return_tensors="pt", **settings)
    assert torch.equal(seen["image_grid_thw"], expected["image_grid_thw"])
    assert torch.equal(seen["pixel_values"], expected["pixel_values"])
    turned = expected["image_grid_thw"][1]
    assert turned[1] > turned[2], "the photograph stands upright"
    counted = plugin._get_mm_token_metadata(images, [], [], processor)
    assert torch.equal(counted["image_grid_thw"], expected["image_grid_thw"])


@pytest.mark.parametrize("name", PLUGINS)
def test_a_palette_chart_is_scaled_as_its_rgb_copy(
    processor: Any, tmp_path: Path, name: str
) -> None:
    """LLaMA-Factory's own plugin picks single pixels of a palette image and loses lines."""
    palette, copy = tmp_path / "palette.png", tmp_path / "rgb.png"
    chart().resize((700, 500)).quantize(8).save(palette)  # Over the limit, so scaled.
    Image.open(palette).convert("RGB").save(copy)

    def seen(plugin: str, path: Path) -> torch.Tensor:
        plugin = get_mm_plugin(plugin, image_token="<|image_pad|>", video_token="<|video_pad|>")
        return plugin.get_mm_inputs([str(path)], [], [], [], [], [], [], processor)["pixel_values"]

    assert torch.equal(seen(name, palette), seen(name, copy))
    upstream = name.removeprefix("deepeyes_")
    assert not torch.allclose(seen(upstream, palette), seen(upstream, copy), atol=0.1)


sides = st.integers(1, 900) | st.sampled_from([1, 28, 40, 56, 8000])


@given(size=st.tuples(sides, sides))
@settings(max_examples=60, deadline=None)
def test_tokens_are_counted_from_the_header(processor: Any, size: tuple[int, int]) -> None:
    """And the processor's own resizing has nothing left to do, at any aspect ratio."""
    plugin = get_mm_plugin(PLUGINS[0], image_token="<|image_pad|>", video_token="<|video_pad|>")
    image = Image.new("L", size)

    messages = plugin.process_messages(
        [{"role": "user", "content": "<image>"}], [image], [], [], processor
    )

    (grid,) = plugin.get_mm_inputs([image], [], [], [1], [0], [0], [], processor)["image_grid_thw"]
    assert messages[0]["content"].count("<|image_pad|>") == int(grid.prod()) // 4
    assert int(grid.prod()) * 14 * 14 <= MOST_PIXELS


def test_training_samples_from_a_zip_file(
    tiny_model_path: Path, demonstrations: Path, rows: Rows, tmp_path: Path
) -> None:
    archive = tmp_path / "images.zip"
    with ZipFile(archive, "w") as opened:
        for path in sorted((demonstrations / "images").iterdir()):
            opened.write(path, path.name)
    data = write_dataset(tmp_path / "data", rows)
    arguments = train_arguments(tiny_model_path, data, archive, tmp_path / "out")

    packed = tokenized(arguments)

    unpacked = tokenized({**arguments, "media_dir": str(demonstrations)})
    for one, other in zip(packed, unpacked, strict=True):
        assert one["input_ids"] == other["input_ids"]
        assert one["images"][0].startswith("zip://") and len(one["images"]) == len(other["images"])

    with pytest.raises(SettingsError, match=r"zip file .*images\.zip.*template is qwen2_vl"):
        tokenized({**arguments, "template": "qwen2_vl"})
