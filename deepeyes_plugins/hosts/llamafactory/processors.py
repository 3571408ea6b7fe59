"""LLaMA-Factory sample processors that truncate between turns for the DeepEyes templates.

Upstream cuts token ids at ``cutoff_len``, even within an image or the opening of an assistant turn,
but passes all images on: the number of image features does not match, and training stops. It also
cannot drop a sample at this stage, and a sample without tokens makes the loss NaN. These classes
replace two of upstream's in the namespace that chooses between them; other templates behave as
upstream.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from itertools import compress
from types import ModuleType
from typing import Any

from llamafactory.data.processor import (
    PackedSupervisedDatasetProcessor,
    SupervisedDatasetProcessor,
)

from deepeyes_plugins.hosts.llamafactory.template import DeepEyesTemplate

_COLUMNS = ("input_ids", "attention_mask", "labels", "images", "videos", "audios")

logger = logging.getLogger(__name__)


@dataclass
class _TruncatingBase(SupervisedDatasetProcessor):
    """Passes ``cutoff_len`` to the template, which drops turns, and drops their images."""

    template: Any
    _left_out: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.template, DeepEyesTemplate):
            self.template = replace(self.template, cutoff_len=self.data_args.cutoff_len)

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch; samples whose question alone does not fit are dropped and logged."""
        self._left_out = []
        inputs: dict[str, list[Any]] = super().preprocess_dataset(examples)
        if self._left_out:
            logger.warning(
                "%d of %d samples are dropped: their question alone leaves no room for an answer "
                "in cutoff_len=%d tokens. Raise it, or lower image_max_pixels. Samples: %s",
                len(self._left_out),
                len(examples["_prompt"]),
                self.data_args.cutoff_len,
                "; ".join(self._left_out),
            )
        return inputs

    def _encode_data_example(self, **sample: Any) -> tuple[list[int], list[int]]:
        ids: list[int]
        labels: list[int]
        ids, labels = super()._encode_data_example(**sample)
        if isinstance(self.template, DeepEyesTemplate):
            # The list belongs to the sample: remove the images of dropped turns.
            opening = self.template.mm_plugin.vision_bos_token
            del sample["images"][ids.count(self.tokenizer.convert_tokens_to_ids(opening)) :]
            if not ids:
                self._left_out.append(repr(sample["prompt"][0]["content"][:60]))
        return ids, labels


@dataclass
class TruncatingProcessor(_TruncatingBase):
    """One sample per row."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch."""
        inputs = super().preprocess_dataset(examples)
        if not self._left_out:
            return inputs
        used = [bool(ids) for ids in inputs["input_ids"]]
        return {name: list(compress(column, used)) for name, column in inputs.items()}


@dataclass
class TruncatingPackedProcessor(_TruncatingBase, PackedSupervisedDatasetProcessor):
    """Several samples per row, for ``packing`` and ``neat_packing``."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize and pack a batch."""
        return super().preprocess_dataset(examples) or {name: [] for name in _COLUMNS}

    def _encode_data_example(self, **sample: Any) -> tuple[list[int], list[int]]:
        ids, labels = super()._encode_data_example(**sample)
        # Upstream drops samples that are longer than a pack.
        too_long = [self.tokenizer.pad_token_id] * (self.data_args.cutoff_len + 1)
        return (ids, labels) if ids else (too_long, labels)


def register(loader: ModuleType) -> None:
    """Replace the processor classes in LLaMA-Factory's loader.

    Args:
        loader: ``llamafactory.data.loader``.

    Raises:
        AttributeError: The loader does not have these classes.
    """
    for name, processor in (
        ("SupervisedDatasetProcessor", TruncatingProcessor),
        ("PackedSupervisedDatasetProcessor", TruncatingPackedProcessor),
    ):
        getattr(loader, name)
        setattr(loader, name, processor)
