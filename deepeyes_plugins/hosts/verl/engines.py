"""Sampling parameters of verl's rollout engines.

verl 0.9.1's servers read the length limit and ``logprobs`` from the sampling parameters and pass
the rest to the engine, which fails on unknown keys. The names are those of vLLM 0.24
(``SamplingParams``) and SGLang 0.5 (``sampling_params`` of ``/generate``).

========================  ==========================================  ===========================
setting                   ``vllm``, ``transformers``                  ``sglang``
========================  ==========================================  ===========================
maximum turn length       ``max_tokens``                              ``max_new_tokens``
stop at a tag             ``stop`` + ``include_stop_str_in_output``   ``stop_token_ids``
forbidden tokens          ``logit_bias``, ids as integers             ``logit_bias``, as strings
========================  ==========================================  ===========================

verl starts SGLang without a tokenizer (``skip_tokenizer_init``): it cannot match stop strings. A
tag that is one token (``</tool_call>``) stops generation; after any other (``</code>``) the engine
may continue, and the surplus is cut off afterwards.

Images are passed as Pillow images in the order of their placeholders, which are already expanded in
the ids. verl's vLLM server collapses the placeholders, and the engine expands them again. SGLang up
to 0.5.12, which verl pins, decodes and re-encodes the ids of such a request, so it may read other
tokens than were generated; 0.5.13 does not (SGLang's pull request 26555).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

FORBIDDEN_BIAS = -100.0
"""Lowest logit bias that OpenAI-compatible engines accept."""

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
    """Return the sampling parameters of one turn as a new dictionary.

    Args:
        engine: Name of the engine, ``actor_rollout_ref.rollout.name``.
        sampling_params: verl's sampling parameters.
        limit: Maximum tokens of the turn.
        stop: Stop strings; they stay in the output.
        stop_ids: Ids of the stop strings that are a single token.
        forbidden: Ids that must not be generated.

    Raises:
        ValueError: The engine is not supported.
    """
    if engine not in ENGINES:
        raise ValueError(
            f"the deepeyes agent loop does not support the rollout engine {engine!r}: set "
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
