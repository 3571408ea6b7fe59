"""How many tokens an image takes: our count, the processor's and that of verl's token builder."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoProcessor,
    Glm4vImageProcessor,
    GotOcr2ImageProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.transformers import images
from deepeyes_plugins.hosts.transformers.images import (
    check_image_settings,
    image_bounds,
    image_tokens,
    model_image,
)
from deepeyes_plugins.hosts.verl.placeholders import without_pixels
from deepeyes_plugins.protocol.content import EncodedImage

PUBLISHED = {
    "qwen2_5_vl": {
        "patch_size": 14,
        "size": {"shortest_edge": 56**2, "longest_edge": 12_845_056},
    },
    "qwen3_vl": {"patch_size": 16, "size": {"shortest_edge": 256**2, "longest_edge": 4096**2}},
}
"""Patches and bounds as the models are published."""


@pytest.fixture(scope="module", autouse=True)
def class_defaults() -> Iterator[None]:
    """A constructor's limits become the defaults of processors that are made later."""
    defaults = Qwen2VLImageProcessor.size
    Qwen2VLImageProcessor.size = dict(defaults)
    yield
    Qwen2VLImageProcessor.size = defaults


def blank(size: tuple[int, int]) -> torch.Tensor:
    """A picture without pixels: the processor computes shapes only."""
    return torch.empty(3, size[1], size[0], dtype=torch.uint8, device="meta")


def tokens_of(image_processor: Any, image: Any, **options: Any) -> int:
    grid = image_processor(images=[image], return_tensors="pt", **options)["image_grid_thw"]
    return int(grid.prod()) // 4


sides = st.integers(4, 9000) | st.sampled_from([13, 14, 15, 28, 41, 2600, 2604, 8200])
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 200 * min(size))
pixels = st.integers(1, 2_000_000) | st.sampled_from([0, 784, 3136, 65536, 1_003_520, 20_000_000])
edges = st.fixed_dictionaries({"shortest_edge": pixels, "longest_edge": pixels})
overrides = st.fixed_dictionaries(
    {},
    optional={
        "min_pixels": pixels | st.none(),
        "max_pixels": pixels | st.just("262144"),
        "size": edges | st.just({"shortest_edge": 3136}),
    },
)
attributes = st.fixed_dictionaries(
    {}, optional={"min_pixels": pixels, "max_pixels": pixels, "size": edges}
)
configured = st.fixed_dictionaries({}, optional={"min_pixels": pixels, "max_pixels": pixels})


@given(
    st.sampled_from(sorted(PUBLISHED)),
    sizes,
    overrides,
    attributes,
    configured,
)
@example("qwen3_vl", (112, 112), {"min_pixels": 3136}, {}, {})
@example("qwen2_5_vl", (3000, 2000), {"max_pixels": 262_144}, {}, {})
@example("qwen2_5_vl", (3000, 2000), {"max_pixels": 262_144}, {"min_pixels": 784}, {})
@example("qwen2_5_vl", (2600, 14), {}, {}, {})
@example("qwen2_5_vl", (8200, 41), {}, {}, {})
@example("qwen2_5_vl", (8200, 41), {"min_pixels": 3136, "max_pixels": 100_352}, {}, {})
@settings(max_examples=150, deadline=None)
def test_the_count_is_that_of_processor_and_builder_whatever_the_bounds(
    processor: Any,
    model: str,
    size: tuple[int, int],
    by_call: dict[str, Any],
    by_attribute: dict[str, Any],
    by_config: dict[str, Any],
) -> None:
    """Or the settings are refused, as the processor refuses them."""
    image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED[model]))
    if all(by_config.values()):
        image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED[model]), **by_config)
    for name, value in by_attribute.items():
        setattr(image_processor, name, value)
    whole = copy.copy(processor)
    whole.image_processor = image_processor
    builder = create_continuous_token_builder(
        processor.tokenizer, hf_model_type=model, processor=whole, mm_processor_kwargs=by_call
    )
    try:
        bounds = image_bounds(image_processor, by_call)
    except SettingsError:
        # Where pixels count, the processor does not look at the size, which is wrong all the same.
        in_size = by_call.get("size", {"shortest_edge": 1, "longest_edge": 1}).values()
        if 0 not in (*by_call.values(), *in_size) and len(in_size) == 2:
            with pytest.raises(Exception):  # noqa: B017 - of half a dozen kinds
                tokens_of(image_processor, blank(size), **by_call)
        return
    expected = tokens_of(image_processor, blank(size), **by_call)
    assert image_tokens(size, bounds) == expected
    if expected < 2000:  # The tokenizer takes its time for more.
        message = {"role": "user", "content": [{"type": "image"}]}
        ids = builder.build_initial_tokens([message], images=[blank(size)])
        assert ids.count(processor.image_token_id) == expected


@given(
    st.tuples(st.integers(4, 300), st.integers(4, 300)).filter(
        lambda size: max(size) <= 200 * min(size)
    ),
    st.integers(784, 60_000),
    st.integers(784, 60_000),
)
@example((1000, 5), 784, 12_845_056)
@example((300, 100), 4096, 4096)
@settings(max_examples=40, deadline=None)
def test_what_is_sent_looks_to_the_processor_like_the_original(
    size: tuple[int, int], least: int, most: int
) -> None:
    """Where resizing does not settle, too."""
    image_processor = Qwen2VLImageProcessor(min_pixels=least, max_pixels=most)
    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    sent = model_image(EncodedImage.from_pil(picture), image_bounds(image_processor, {}))
    for_sent = image_processor(images=[sent], return_tensors="pt")
    for_original = image_processor(images=[picture], return_tensors="pt")
    assert torch.equal(for_sent["image_grid_thw"], for_original["image_grid_thw"])
    assert torch.equal(for_sent["pixel_values"], for_original["pixel_values"])


@pytest.mark.parametrize("size", [(5000, 3), (1, 900)])
def test_an_aspect_ratio_that_processors_refuse_is_brought_under_it(size: tuple[int, int]) -> None:
    image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED["qwen2_5_vl"]))
    bounds = image_bounds(image_processor, {})
    with pytest.raises(ValueError, match="aspect ratio"):
        tokens_of(image_processor, Image.new("RGB", size))
    sent = model_image(EncodedImage.from_pil(Image.new("RGB", size)), bounds)
    assert tokens_of(image_processor, sent) == image_tokens(size, bounds)


@pytest.mark.parametrize(
    "config",
    [
        {"min_pixels": 3136, "max_pixels": 12_845_056},
        {"max_pixels": 100_352},
        {"size": {"shortest_edge": 65536, "longest_edge": 16_777_216}},
        {"size": {"shortest_edge": 65536, "longest_edge": 16_777_216}, "max_pixels": 131_072},
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_bounds_of_a_models_files(
    tiny_model: Path, tmp_path: Path, file: str, config: dict[str, Any]
) -> None:
    """Qwen2.5-VL is published with pixels, Qwen3-VL with a size."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = json.loads((model / "processor_config.json").read_text())
    own = {key: value for key, value in stored["image_processor"].items() if key != "size"} | config
    if file == "processor_config.json":
        (model / file).write_text(json.dumps(stored | {"image_processor": own}))
    else:
        del stored["image_processor"]
        (model / "processor_config.json").write_text(json.dumps(stored))
        (model / file).write_text(json.dumps(own))
    image_processor = AutoProcessor.from_pretrained(model).image_processor
    bounds = image_bounds(image_processor, {})
    for size in ((60, 40), (640, 480), (5000, 4000), (2600, 14)):
        assert image_tokens(size, bounds) == tokens_of(image_processor, blank(size))
    wanted = config.get("max_pixels") or config["size"]["longest_edge"]
    assert bounds.maximum == wanted


def test_the_processor_without_torchvision_has_the_same_bounds() -> None:
    image_processor = Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=50_176)
    bounds = image_bounds(image_processor, {})
    for size in ((20, 31), (640, 480), (600, 4)):
        assert image_tokens(size, bounds) == tokens_of(image_processor, Image.new("RGB", size))


@pytest.mark.parametrize("alone", ["min_pixels", "max_pixels"])
def test_a_bound_alone_is_refused_with_what_to_set(alone: str) -> None:
    image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED["qwen2_5_vl"]))
    both = {"min_pixels": 3136, "max_pixels": 12_845_056, alone: 100_352}
    with pytest.raises(SettingsError) as refused:
        check_image_settings(image_processor, {alone: 100_352})
    text = str(refused.value)
    assert text.startswith(f"data.mm_processor_kwargs.{alone}: alone it has no effect")
    assert text.endswith(
        f"Set both: +data.mm_processor_kwargs.min_pixels={both['min_pixels']} "
        f"+data.mm_processor_kwargs.max_pixels={both['max_pixels']}"
    )
    check_image_settings(image_processor, both)


def test_the_pair_to_set_never_crosses() -> None:
    image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED["qwen3_vl"]))
    with pytest.raises(SettingsError, match=r"min_pixels=10000 \S+max_pixels=10000$"):
        check_image_settings(image_processor, {"max_pixels": 10_000})


def test_where_nothing_checks_the_settings_a_bound_alone_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images._warn_of_ignored.cache_clear()
    image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED["qwen3_vl"]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert image_bounds(image_processor, {"min_pixels": 3136}).minimum == 65536
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "data.mm_processor_kwargs.min_pixels alone has no effect" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"min_pixels": 300, "max_pixels": 200}, r"min_pixels \(300\) is above max_pixels \(200\)"),
        ({"do_resize": False}, "data.mm_processor_kwargs.do_resize: belongs to the model"),
        ({"patch_size": 16}, "data.mm_processor_kwargs.patch_size: belongs to the model"),
        ({"images_kwargs": {"max_pixels": 9}}, "images_kwargs: write its keys directly"),
        ({"size": {"longest_edge": 9}}, "size: the processor rejects .* set min_pixels and max"),
        ({"max_pixels": None}, "max_pixels: None is not a positive whole number"),
        ({"max_pixels": 1e6}, "max_pixels: 1000000.0 is not a positive whole number"),
    ],
)
def test_settings_that_cannot_be_fulfilled_are_refused_by_name(
    given: dict[str, Any], words: str
) -> None:
    image_processor = Qwen2VLImageProcessor(**copy.deepcopy(PUBLISHED["qwen2_5_vl"]))
    with pytest.raises(SettingsError, match=words):
        check_image_settings(image_processor, given)


@pytest.mark.parametrize("kind", [Glm4vImageProcessor, GotOcr2ImageProcessor])
def test_a_processor_of_another_kind_is_refused_with_what_was_found(kind: Any) -> None:
    """GLM-4.1V counts time as well; InternVL, whose processor that is, cuts images into tiles."""
    with pytest.raises(SettingsError, match=f"{kind.__name__} .patch_size .* merge_size .* size"):
        image_bounds(kind(), {})


@pytest.mark.parametrize("kept", [(28, 3136, 12_845_056), (28, 3136, 100_352)])
def test_the_stand_in_is_compared_at_extremes(
    processor: Any, kept: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that differs only where pictures are thin or beyond the bounds is found out."""

    class Other(Qwen2VLImageProcessor):
        def _preprocess(self, images: list[Any], *arguments: Any, **options: Any) -> Any:
            found = super()._preprocess(images, *arguments, **options)
            for at, image in enumerate(images):
                height, width = image.shape[-2:]
                if differs(width, height):
                    found["image_grid_thw"][at, 1] += 2
            return found

    factor, least, most = kept
    whole = copy.copy(processor)
    whole.image_processor = Other(min_pixels=least, max_pixels=most)

    def chosen() -> bool:
        builder = create_continuous_token_builder(
            processor.tokenizer, hf_model_type="qwen2_5_vl", processor=copy.copy(whole)
        )
        return without_pixels(builder) is not builder

    cases = SimpleNamespace(
        never=lambda width, height: False,
        strips=lambda width, height: max(width, height) > 150 * min(width, height),
        small=lambda width, height: width * height < least,
        large=lambda width, height: width * height > most,
    )
    found = {}
    for name, differs in vars(cases).items():  # noqa: B007
        found[name] = chosen()
    assert found == {"never": True, "strips": False, "small": False, "large": False}
    assert factor == processor.image_processor.patch_size * processor.image_processor.merge_size
