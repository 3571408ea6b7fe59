"""LLaMA-Factory's tokenization, without its way to truncate where a template of ours is used.

Upstream cuts token ids at ``cutoff_len`` wherever that falls, also within an image or the opening
of the assistant's turn, and hands all images on: the count of image features does not match and
training stops. It has no way to leave out a sample at this stage either, and a sample without
tokens makes the loss NaN. These classes take the place of two of its own, in the one namespace
that chooses between them; other templates get what upstream would do.
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
    """Hands ``cutoff_len`` to the template, which leaves out turns, and does what follows."""

    template: Any
    _left_out: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.template, DeepEyesTemplate):
            self.template = replace(self.template, cutoff_len=self.data_args.cutoff_len)

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch; samples whose question alone does not fit are left out and named."""
        self._left_out = []
        inputs: dict[str, list[Any]] = super().preprocess_dataset(examples)
        if self._left_out:
            logger.warning(
                "%d of %d samples are left out: their question alone leaves no room for an answer "
                "in cutoff_len=%d tokens. Raise it, or lower image_max_pixels. They are: %s",
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
            # The list is the sample's own: the images of turns that are left out go from it.
            opening = self.template.mm_plugin.vision_bos_token
            del sample["images"][ids.count(self.tokenizer.convert_tokens_to_ids(opening)) :]
            if not ids:
                self._left_out.append(repr(sample["prompt"][0]["content"][:60]))
        return ids, labels


@dataclass
class TruncatingProcessor(_TruncatingBase):
    """One sample a row."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch."""
        inputs = super().preprocess_dataset(examples)
        if not self._left_out:
            return inputs
        kept = [bool(ids) for ids in inputs["input_ids"]]
        return {name: list(compress(column, kept)) for name, column in inputs.items()}


@dataclass
class TruncatingPackedProcessor(_TruncatingBase, PackedSupervisedDatasetProcessor):
    """Several samples a row, for ``packing`` and ``neat_packing``."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize and pack a batch."""
        return super().preprocess_dataset(examples) or {name: [] for name in _COLUMNS}

    def _encode_data_example(self, **sample: Any) -> tuple[list[int], list[int]]:
        ids, labels = super()._encode_data_example(**sample)
        # A sample longer than a pack is what upstream leaves out.
        too_long = [self.tokenizer.pad_token_id] * (self.data_args.cutoff_len + 1)
        return (ids, labels) if ids else (too_long, labels)


def register(loader: ModuleType) -> None:
    """Let LLaMA-Factory's loader choose from the classes of this module.

    Args:
        loader: ``llamafactory.data.loader``.

    Raises:
        AttributeError: It does not choose from such classes any more.
    """
    for name, ours in (
        ("SupervisedDatasetProcessor", TruncatingProcessor),
        ("PackedSupervisedDatasetProcessor", TruncatingPackedProcessor),
    ):
        getattr(loader, name)
        setattr(loader, name, ours)
