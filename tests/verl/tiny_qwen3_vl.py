"""A tiny Qwen3-VL with random weights, beside the quickstart's Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from deepeyes_plugins.quickstart.tiny_model import (
    CHAT_TEMPLATE,
    ORDINARY_ADDED_TOKENS,
    save,
    token_ids,
    train_tokenizer,
    vision_token_ids,
)

ADDED_TOKENS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
DEFAULT_SYSTEM_MESSAGE = """\
{%- if messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""


def make_tiny_qwen3_vl(
    output_dir: Path, corpus: Sequence[str], *, thinking: bool = False, seed: int = 0
) -> None:
    """Write a Qwen3-VL with model, tokenizer, processor and chat template.

    What differs from Qwen2.5-VL for an agent: patches of 16 pixels, larger bounds of the image
    size, tags of thinking and tool responses as single tokens, and no system message that was not
    asked for.

    Args:
        output_dir: Receives the files; created if missing.
        corpus: The texts of the task.
        thinking: The template opens every answer with `<think>`, like those of the Thinking models.
        seed: Seed of the weights.
    """
    tokenizer = train_tokenizer(corpus, ORDINARY_ADDED_TOKENS + ADDED_TOKENS)
    images: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    images |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        # The sizes of the released models: 64 to 16,384 image tokens.
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 256**2, "longest_edge": 4096**2}, **images
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**images),
        chat_template=_chat_template(thinking),
    )
    width = 4 * 32
    end_of_turn, end_of_text = token_ids(tokenizer, "<|im_end|>", "<|endoftext|>")
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_turn,
            "pad_token_id": end_of_text,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 4,
            "out_hidden_size": width,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        },
        **vision_token_ids(tokenizer),
        tie_word_embeddings=False,
    )
    save(output_dir, Qwen3VLForConditionalGeneration, config, processor, seed)


def _chat_template(thinking: bool) -> str:
    """Return the template without a default system message; a Thinking model's opens turns."""
    template = CHAT_TEMPLATE.replace(DEFAULT_SYSTEM_MESSAGE, "{#- none -#}\n")
    opening = "assistant\\n<think>\\n" if thinking else "assistant\\n"
    return template.replace("assistant\\n", opening)
