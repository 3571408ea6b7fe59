r"""Templates that give SFT, RL and inference the same tokens.

::

    <|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n | <think> | Look.</think>...<|im_end|>
    context                                                  | context | carries loss

``<think>`` opens every assistant turn. It is context in RL and at inference, so it is context here,
too, and is encoded separately from the text that follows. The line break after ``<|im_end|>``,
which engines never generate, is also context. ``<|im_end|>`` itself carries loss after every turn:
the policy generates it after an answer, and after ``</code>`` and ``</tool_call>``, where a stop
string ends the turn, it teaches the model to stop on servers without stop strings.
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
"""Default system prompt of each model family's chat template."""

Pair = tuple[list[int], list[int]]
"""Token ids of a user turn with the opening of the assistant turn, and of the assistant turn."""


@dataclass
class DeepEyesTemplate(Template):
    """ChatML with the prefill of the DeepEyesV2 protocol and truncation between turns.

    Attributes:
        prefill: Text that opens every assistant turn; removed from turns that start with it.
        cutoff_len: Maximum tokens of a sample; ``None`` for no limit.
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
        """Encode a sample, truncated by :func:`truncate_turns`."""
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
        """Remove the prefill, which is part of the user turn, from an assistant message."""
        text = message["content"].lstrip()
        if message["role"] != Role.ASSISTANT or not text.startswith(self.prefill):
            return message
        return {**message, "content": text.removeprefix(self.prefill)}


def truncate_turns(pairs: Iterable[Pair], limit: int) -> list[Pair]:
    """Return the turns of a sample that fit into ``limit`` tokens.

    A user turn that does not fit is dropped whole, with its images and all later turns. The last
    remaining assistant turn may be truncated; it then has no ``<|im_end|>``, so that the model does
    not learn to end there.
    """
    fitting: list[Pair] = []
    for source, target in pairs:
        if len(source) >= limit:
            break
        fitting.append((source, target[: limit - len(source)]))
        limit -= len(source) + len(target)
    return fitting


def register(templates: Mapping[str, Template]) -> None:
    """Register ``deepeyes_qwen2_vl`` (Qwen2.5-VL, Qwen2-VL) and ``deepeyes_qwen3_vl``.

    Idempotent.

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
                # Each slot is encoded separately, as hosts encode the prefill.
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
