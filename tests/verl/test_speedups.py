"""Processor arguments are still validated, by a schema that is built once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import verl  # noqa: F401 - loads our plugin, which adapts transformers
from huggingface_hub import dataclasses as validator
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import Image


def test_equal_calls_of_a_processor_share_one_schema(processor: Any) -> None:
    image = Image.new("RGB", (56, 56))

    def call() -> None:
        processor(text=["<|image_pad|>"], images=[image], return_tensors="pt")

    call()
    before = validator._build_strict_cls_from_typed_dict.cache_info().misses
    for _ in range(3):
        call()
    assert validator._build_strict_cls_from_typed_dict.cache_info().misses == before


def test_wrong_arguments_are_still_refused(processor: Any, tiny_model: Path) -> None:
    del tiny_model
    with pytest.raises(StrictDataclassFieldValidationError):
        processor(
            text=["<|image_pad|>"], images=[Image.new("RGB", (56, 56))], do_resize=[1, "maybe"]
        )
