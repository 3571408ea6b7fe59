r"""Templates under which SFT, reinforcement learning and inference see the same tokens.

::

    <|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n | <think> | Look.</think>...<|im_end|>
    context                                                  | context | carries loss

``<think>`` stands ahead of every assistant turn: in reinforcement learning and at inference it is
context, so it is context here, too, encoded apart from what follows. So is the line break behind
a turn's ``<|im_end|>``, which no engine ever generates. ``<|im_end|>`` itself carries loss behind
every turn: behind an answer the policy generates it; behind ``</code>`` and ``</tool_call>``, where
a stop string ends the turn, it teaches the model to end there on servers without stop strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llamafactory.data.data_utils import Role
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.template import Template, register_template

from deepeyes_plugins.protocol.dialect import DEEPEYES_V2

SYSTEM_PROMPTS: Mapping[str, str] = {"qwen2_vl": "You are a helpful assistant.", "qwen3_vl": ""}
"""Model family to what its chat template says where a conversation has no system turn."""

Pair = tuple[list[int], list[int]]
"""Ids of a user turn with the opening of the assistant's, and ids of the assistant's turn."""


@dataclass
class DeepEyesTemplate(Template):
    """ChatML with the opening text of the DeepEyesV2 protocol, which knows how long a sample is.

    Attributes:
        prefill: Text ahead of every assistant turn. A turn that begins with it is read without.
        cutoff_len: Most tokens of a sample; ``None`` for any number.
    """

    prefill: str = DEEPEYES_V2.prefill
    cutoff_len: int | None = None

    def encode_multiturn(
        self,
        tokenizer: Any,
        messages: list[dict[str, str]],
        system: str | None = None,
        tools: str | None = None,
        discarding_history_cot: bool = False,
    ) -> list[Pair]:
        """Encode a sample; what does not fit is left out, see :func:`truncate_turns`."""
        pairs: list[Pair] = super().encode_multiturn(
            tokenizer, messages, system, tools, discarding_history_cot
        )
        return pairs if self.cutoff_len is None else truncate_turns(pairs, self.cutoff_len)

    def _encode(
        self,
        tokenizer: Any,
        messages: list[dict[str, str]],
        system: str | None,
        tools: str | None,
    ) -> list[list[int]]:
        turns = super()._encode(tokenizer, list(map(self._opened, messages)), system, tools)
        line_break = tokenizer.encode("\n", add_special_tokens=False)
        return [line_break + ids if at and at % 2 == 0 else ids for at, ids in enumerate(turns)]

    def _opened(self, message: dict[str, str]) -> dict[str, str]:
        """An assistant's message without what the user's turn has put ahead of it."""
        text = message["content"].lstrip()
        if message["role"] != Role.ASSISTANT or not text.startswith(self.prefill):
            return message
        return {**message, "content": text.removeprefix(self.prefill)}


def truncate_turns(pairs: Iterable[Pair], limit: int) -> list[Pair]:
    """Return the turns of a sample that fit into ``limit`` tokens.

    A user turn is kept whole, with all of its images, or not at all; with it go all later turns.
    The last assistant turn that is kept may be cut: text only, and its ``<|im_end|>`` goes with
    the rest, so that nobody learns to end there.
    """
    kept: list[Pair] = []
    for source, target in pairs:
        if len(source) >= limit:
            break
        kept.append((source, target[: limit - len(source)]))
        limit -= len(source) + len(target)
    return kept


def register(templates: Mapping[str, Template]) -> None:
    """Register ``deepeyes_qwen2_vl`` (Qwen2.5-VL, Qwen2-VL) and ``deepeyes_qwen3_vl``.

    Calling it again changes nothing.

    Args:
        templates: LLaMA-Factory's registry.
    """
    for family, system in SYSTEM_PROMPTS.items():
        name = f"deepeyes_{family}"
        if name in templates:
            continue
        opening = "<|im_start|>assistant\n"
        register_template(
            name=name,
            format_user=StringFormatter(
                # Two pieces: a piece is encoded by itself, as hosts encode the prefill.
                slots=[
                    f"<|im_start|>user\n{{{{content}}}}<|im_end|>\n{opening}",
                    DEEPEYES_V2.prefill,
                ]
            ),
            format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
            format_system=StringFormatter(slots=["<|im_start|>system\n{{content}}<|im_end|>\n"]),
            default_system=system,
            stop_words=["<|im_end|>"],
            replace_eos=True,
            mm_plugin=get_mm_plugin(name, image_token="<|image_pad|>", video_token="<|video_pad|>"),
            template_class=DeepEyesTemplate,
        )
