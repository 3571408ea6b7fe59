"""Writer of samples for RL Logging Board, a viewer of responses token by token.

The viewer (HarderThenHarder/RLLoggingBoard at cf56d5d, ``rl_logging_board.py``) reads every
``*.jsonl`` of a folder, one JSON object per line: ``step`` (int), ``prompt``, ``response`` (text),
``response_tokens`` (text of each token), ``logprobs``, ``token_rewards`` and, optionally,
``ref_logprobs`` and ``values`` (a number for each token), ``reward`` (float), ``ground_truth``
(text). Unknown keys are ignored. It plots steps in file order, so there is one file in the order of
training; within a step, all lines must have the same keys.

Context tokens inside a response have log-probability 0, as the policy did not generate them; the
additional key ``response_mask`` marks them.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deepeyes_plugins.files import append_line, owner_only_folder
from deepeyes_plugins.protocol.content import encodable
from deepeyes_plugins.rollout.log import BackgroundWriter

logger = logging.getLogger(__name__)

FILE_NAME = "rollouts.jsonl"

_PADS = re.compile(r"(<\|\w+_pad\|>)\1+")
_DIGITS = 6
_LARGEST = 1e9
_BYTES_PER_TOKEN = 256
"""Upper estimate of the memory of one token in a queued sample."""


@dataclass(frozen=True, slots=True)
class BoardSample:
    """One response, token by token.

    Attributes:
        prompt: Ids of the prompt's tokens.
        response: Ids of the response's tokens; all per-token sequences have this length.
        mask: 1 for tokens that the policy generated.
        log_probs: Log-probabilities by the trained policy.
        token_rewards: Rewards used in training; usually 0 except for the last token.
        reward: Reward of the response.
        ground_truth: Reference answer.
        data_source: Data source of the question.
        reference_log_probs: Log-probabilities by the reference policy, if there is one.
        values: Values by the critic, if there is one.
    """

    prompt: Sequence[int]
    response: Sequence[int]
    mask: Sequence[int]
    log_probs: Sequence[float]
    token_rewards: Sequence[float]
    reward: float
    ground_truth: str
    data_source: str
    reference_log_probs: Sequence[float] | None = None
    values: Sequence[float] | None = None


class LoggingBoard:
    """Writes samples in the background; failures are logged as warnings."""

    def __init__(self, folder: str | Path, tokenizer: Any) -> None:
        """Create the writer.

        Args:
            folder: Output folder, created with the first step.
            tokenizer: The policy's tokenizer.
        """
        self._path = Path(folder) / FILE_NAME
        # A copy, as tokenizers are not thread-safe.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._texts: dict[int, str] = {}
        self.writer = BackgroundWriter("samples for the logging board")

    def log(self, step: int, samples: Sequence[BoardSample]) -> None:
        """Queue the samples of a step; all or none of them are written."""
        tokens = sum(len(sample.prompt) + len(sample.response) for sample in samples)
        if samples:
            self.writer.submit(partial(self._write, step, samples), tokens * _BYTES_PER_TOKEN)

    def _write(self, step: int, samples: Sequence[BoardSample]) -> None:
        owner_only_folder(self._path.parent)
        append_line(self._path, b"\n".join(self._line(step, sample) for sample in samples))

    def _line(self, step: int, sample: BoardSample) -> bytes:
        line: dict[str, Any] = {
            "step": step,
            "prompt": self._text(sample.prompt),
            "response": self._text(sample.response),
            "reward": _number(sample.reward),
            "ground_truth": encodable(sample.ground_truth),
            "data_source": encodable(sample.data_source),
            "response_tokens": [self._token(token) for token in sample.response],
            "response_mask": list(sample.mask),
            "logprobs": _numbers(sample.log_probs),
            "token_rewards": _numbers(sample.token_rewards),
        }
        if sample.reference_log_probs is not None:
            line["ref_logprobs"] = _numbers(sample.reference_log_probs)
        if sample.values is not None:
            line["values"] = _numbers(sample.values)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()

    def _text(self, ids: Sequence[int]) -> str:
        """Decode tokens; the placeholder tokens of an image are collapsed to one."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return encodable(_PADS.sub(r"\1", text))

    def _token(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = encodable(self._tokenizer.decode([token]))
        return self._texts[token]


def _numbers(values: Iterable[float]) -> list[float]:
    return [_number(value) for value in values]


def _number(value: float) -> float:
    """Round a number and replace values that JSON cannot represent."""
    if math.isnan(value):
        return 0.0
    return round(min(max(value, -_LARGEST), _LARGEST), _DIGITS)
