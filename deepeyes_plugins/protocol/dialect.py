"""Dialect: how turns of the wire format are opened and closed."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_PLACEHOLDER = "<image>"
"""Placeholder of an image in the text columns of the published data sets."""

VISION_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>")
TURN_END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How turns are opened and closed.

    Attributes:
        prefill: Text that every assistant turn starts with; context, never policy output.
        stop: Strings that end a turn; they are part of the output.
        forbidden: Tokens that must not be generated, nor spelled with ordinary ones. A policy that
            emits a vision placeholder breaks the count of image features and with it the training
            step.
    """

    prefill: str = ""
    stop: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = VISION_TOKENS + CONTROL_TOKENS


PLAIN = Dialect()
DEEPEYES_V2 = Dialect(prefill="<think>", stop=("</code>", "</tool_call>"))
VISUAL_TOOLBOX_V2 = Dialect(stop=("</tool_call>",))
