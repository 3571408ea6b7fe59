"""Tiny Qwen-VL models with random weights: the real architecture and file layout, in a second.

The checkpoint loads wherever a real one does: transformers, LLaMA-Factory and verl cannot tell
the difference. It knows nothing; supervised fine-tuning has to teach it everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.utils import logging

VIEW_SIDE = 56
"""Side in pixels at which the model sees every square image: four image tokens."""

_PATCH_SIDE = 14
_MERGE_SIDE = 2
_CONTEXT_TOKENS = 4096
_MAX_VOCABULARY = 700
_HEAD_WIDTH = 32

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ORDINARY_ADDED_TOKENS = ("<tool_call>", "</tool_call>")

_TAG = re.compile(r"(</?[a-z_]+>)")

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type == 'video' or 'video' in part -%}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif 'text' in part -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' -}}
  {{- render(message.content) -}}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def make_tiny_qwen2_5_vl(
    output_dir: Path,
    corpus: Sequence[str],
    *,
    seed: int = 0,
    hidden_size: int = 128,
    layers: int = 4,
    vision_hidden_size: int = 128,
    vision_layers: int = 2,
    initializer_range: float | None = None,
) -> None:
    """Writes a checkpoint with model, tokenizer, processor and chat template.

    Args:
        output_dir: Receives the files; created if missing.
        corpus: The texts of the task. Their words become single tokens; any other text is spelled
            in bytes.
        seed: Seed of the weights. The same arguments give the same files.
        hidden_size: Width of the language model, a multiple of 32.
        layers: Depth of the language model.
        vision_hidden_size: Width of the vision tower, a multiple of 32.
        vision_layers: Depth of the vision tower.
        initializer_range: Standard deviation of the initial weights; by default the inverse square
            root of `hidden_size`. The 0.02 of large models, at this width, makes learning to see
            several times slower.

    Raises:
        ValueError: If a width is not a multiple of 32.
    """
    for name, width in (("hidden_size", hidden_size), ("vision_hidden_size", vision_hidden_size)):
        if width % _HEAD_WIDTH:
            raise ValueError(f"{name} must be a multiple of {_HEAD_WIDTH}, got {width}")
    if initializer_range is None:
        initializer_range = hidden_size**-0.5
    processor = _make_processor(corpus)
    tokenizer = processor.tokenizer
    end_of_turn, end_of_text = token_ids(tokenizer, "<|im_end|>", "<|endoftext|>")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": hidden_size,
            "intermediate_size": 3 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden_size // _HEAD_WIDTH,
            "num_key_value_heads": hidden_size // _HEAD_WIDTH,
            "max_position_embeddings": _CONTEXT_TOKENS,
            "initializer_range": initializer_range,
            "rms_norm_eps": 1e-6,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_turn,
            "pad_token_id": end_of_text,
            # The three sections (time, height, width) share half a head.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
            },
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "num_heads": vision_hidden_size // _HEAD_WIDTH,
            "out_hidden_size": hidden_size,
            "patch_size": _PATCH_SIDE,
            "spatial_merge_size": _MERGE_SIDE,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [vision_layers - 1],
            "initializer_range": initializer_range,
        },
        **vision_token_ids(tokenizer),
        initializer_range=initializer_range,
        tie_word_embeddings=False,
    )
    save(output_dir, Qwen2_5_VLForConditionalGeneration, config, processor, seed)


def token_ids(tokenizer: Qwen2Tokenizer, *tokens: str) -> list[int]:
    """Returns the ids of tokens."""
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def vision_token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """Returns a configuration's ids of the vision tokens."""
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image, video, start, end = token_ids(tokenizer, *tokens)
    return {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
    }


def save(
    output_dir: Path,
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    processor: ProcessorMixin,
    seed: int,
) -> None:
    """Writes a model with random weights and its processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).to(torch.float32)
    end_of_turn, end_of_text = token_ids(processor.tokenizer, "<|im_end|>", "<|endoftext|>")
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=end_of_text,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    with _no_progress_bar():
        model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' bar, of which there is one per file, out of the caller's display."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _make_processor(corpus: Sequence[str]) -> Qwen2_5_VLProcessor:
    limits = {
        "size": {"shortest_edge": VIEW_SIDE**2, "longest_edge": VIEW_SIDE**2},
        "patch_size": _PATCH_SIDE,
        "temporal_patch_size": 2,
        "merge_size": _MERGE_SIDE,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits),
        tokenizer=train_tokenizer(corpus, ORDINARY_ADDED_TOKENS),
        video_processor=Qwen2VLVideoProcessor(**limits),
        chat_template=CHAT_TEMPLATE,
    )


def train_tokenizer(corpus: Sequence[str], added: Sequence[str]) -> Qwen2Tokenizer:
    """Trains a tokenizer of the corpus's words and tags.

    Args:
        corpus: The texts of the task.
        added: Added tokens that are not special.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Cutting at the tags keeps every token on one side of a tag: a host that writes "<think>" for
    # the model, or stops it at "</code>", then produces the very tokens of the training text.
    pieces = ["system\n", "user\n", "assistant\n"]
    pieces += [piece for text in corpus for piece in _TAG.split(text)]
    trained.train_from_iterator(
        pieces * 2,  # a word that occurs once must become a token, too
        trainers.BpeTrainer(
            vocab_size=_MAX_VOCABULARY,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL_TOKENS),
        model_max_length=_CONTEXT_TOKENS,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer
