"""What verl's rollout engines are asked for, in the words of each.

Read in verl 0.9.1: its servers take the length limit and ``logprobs`` out of the sampling
parameters and hand the rest to the engine as it is, so a key that the engine does not know ends
the request. The names are those of vLLM 0.24 (``SamplingParams``) and SGLang 0.5
(``sampling_params`` of ``/generate``).

========================  ==========================================  ===========================
what                      ``vllm``, ``transformers``                  ``sglang``
========================  ==========================================  ===========================
longest turn              ``max_tokens``                              ``max_new_tokens``
end at a tag              ``stop`` + ``include_stop_str_in_output``   ``stop_token_ids``
never generate            ``logit_bias``, ids as integers             ``logit_bias``, as strings
========================  ==========================================  ===========================

verl starts SGLang without a tokenizer (``skip_tokenizer_init``), where stop strings are refused:
a tag that is one token (``</tool_call>``) ends the turn there, behind any other (``</code>``) the
engine may run on, and what it adds is cut off when it arrives.

Images go along as Pillow images, in the order of their placeholders, which are already expanded in
the ids. vLLM's server in verl takes the expansion back and the engine repeats it. SGLang up to
0.5.12 turns the ids of such a request into text and back, so that it may read other tokens than
were generated; later ones keep them (``SGLANG_MM_AVOID_RETOKENIZE``, on by default; SGLang's pull
request 26555): use one of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

FORBIDDEN_BIAS = -100.0
"""The lowest logit bias that OpenAI-compatible engines accept."""

ENGINES = ("vllm", "sglang", "transformers")


def engine_params(
    engine: str,
    sampling_params: Mapping[str, Any],
    *,
    limit: int,
    stop: Sequence[str],
    stop_ids: Set[int],
    forbidden: Set[int],
) -> dict[str, Any]:
    """Return the sampling parameters of one turn, in a fresh dictionary.

    Args:
        engine: verl's name of it, ``actor_rollout_ref.rollout.name``.
        sampling_params: Temperature and the like, as verl gives them.
        limit: Most tokens of the turn.
        stop: Texts that end a turn; they stay in the output.
        stop_ids: Those of them that are one token.
        forbidden: Ids that must not be generated.

    Raises:
        ValueError: The engine is not known.
    """
    if engine not in ENGINES:
        raise ValueError(
            f"the deepeyes agent loop does not know the rollout engine {engine!r}: set "
            f"actor_rollout_ref.rollout.name to one of {', '.join(ENGINES)}"
        )
    params = dict(sampling_params)
    if engine == "sglang":
        params["max_new_tokens"] = limit
        params["logit_bias"] = {str(token): FORBIDDEN_BIAS for token in sorted(forbidden)}
        if stop_ids:
            params["stop_token_ids"] = sorted(stop_ids)
        return params
    params["max_tokens"] = limit
    params["logit_bias"] = dict.fromkeys(sorted(forbidden), FORBIDDEN_BIAS)
    if stop:
        params["stop"] = list(stop)
        params["include_stop_str_in_output"] = True
    return params
