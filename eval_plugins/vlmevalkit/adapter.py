"""DeepEyesV2 as one of VLMEvalKit's API models: the whole agent behind ``generate``."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from vlmeval.api.base import BaseAPI

from deepeyes_plugins.hosts.openai import load_openai_settings
from deepeyes_plugins.protocol.content import EncodedImage, Message, Part
from deepeyes_plugins.rollout import EndReason, Task, Trajectory
from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.settings import load_settings
from eval_plugins.vlmevalkit.runner import EpisodeRunner
from eval_plugins.vlmevalkit.settings import PromptSettings, for_evaluation

logger = logging.getLogger(__name__)

UNANSWERED = "Unanswered."
"""Prediction of an episode that ended without a word: VLMEvalKit takes an empty one for a failed
request and asks again. It names no option and says neither yes nor no."""
LONGEST_PREDICTION = 10_000
"""Characters of a prediction, its end; a spreadsheet cell holds 32,767."""


class DeepEyesV2(BaseAPI):
    """A DeepEyes agent: its model on an OpenAI-compatible server, its tools here."""

    is_api = True
    allowed_types: ClassVar[list[str]] = ["text", "image"]
    INTERLEAVE = True

    def __init__(
        self,
        agent_config: str | None = None,
        system_prompt: str | None = None,
        system_prompt_file: str | None = None,
        retry: int = 3,
        wait: int = 1,
        verbose: bool = False,
        fail_msg: str = "Failed to obtain answer via API.",
        **openai: Any,
    ) -> None:
        """Read the settings and connect to the model's servers.

        Args:
            agent_config: Path of agent.yaml; by default what ``DEEPEYES_AGENT_CONFIG`` names.
            system_prompt: System prompt; see :class:`PromptSettings`.
            system_prompt_file: File with the system prompt.
            retry: Episodes to play at most for a sample whose infrastructure fails.
            wait: Mean seconds between them.
            verbose: Print answers and failures.
            fail_msg: Prediction of a failed sample; VLMEvalKit finds those by it.
            **openai: Fields of :class:`~deepeyes_plugins.hosts.openai.OpenAISettings`;
                ``DEEPEYES_OPENAI_…`` environment variables win over them.

        Raises:
            SettingsError: A setting is wrong; it is named.
            InfrastructureError: A server does not answer, or its model is not clear.
        """
        agent = for_evaluation(load_settings(agent_config))
        prompt = PromptSettings(
            **_given(system_prompt=system_prompt, system_prompt_file=system_prompt_file)
        )
        super().__init__(
            retry=retry,
            wait=wait,
            system_prompt=prompt.resolve(agent),  # Wrong settings are told here, not at a sample.
            verbose=verbose,
            fail_msg=fail_msg,
        )
        self._log = TrajectoryLog(agent.trajectories) if agent.trajectories is not None else None
        self._prompt_of = cache(partial(prompt.resolve, agent))
        self._runner = EpisodeRunner(agent, load_openai_settings(**openai))

    def generate_inner(
        self, inputs: Sequence[Mapping[str, str]], dataset: str | None = None, **_: Any
    ) -> tuple[int, str, str]:
        """Play one episode.

        Args:
            inputs: The question's parts in order, ``{"type": "text" | "image", "value": …}``.
            dataset: Name of the dataset.

        Returns:
            VLMEvalKit's triple: code, prediction, log line. The code is not 0 where our
            infrastructure failed; the prediction then is the failure message and the reason.
        """
        benchmark = dataset or ""
        task = make_task(inputs, benchmark, self._prompt_of(benchmark))
        trajectory, images = self._runner.run(task)
        if self._log is not None:
            self._log.append(trajectory, images)
        if trajectory.end_reason is EndReason.INFRASTRUCTURE:
            logger.warning("%s failed: %s", task.id, trajectory.error)
            return -1, f"{self.fail_msg} {trajectory.error}", f"{task.id}: {trajectory.error}"
        summary = f"{task.id}: {trajectory.end_reason} after {len(trajectory.turns)} turns"
        return 0, prediction(trajectory), summary

    def close(self) -> None:
        """Close the connections; also done when the interpreter exits."""
        self._runner.close()


def make_task(inputs: Sequence[Mapping[str, str]], dataset: str, system_prompt: str | None) -> Task:
    """Make a task of a sample; images keep the bytes of their files.

    VLMEvalKit does not tell a model the sample's index, so the id is made of what it gives: the
    dataset, the first image's file name (the index, usually) and a hash of the whole question.
    """
    parts: list[Part] = []
    name = ""
    digest = hashlib.sha256()
    for item in inputs:
        if item["type"] == "image":
            path = Path(item["value"])
            image = EncodedImage(path.read_bytes())
            name = name or f"{path.stem}-"
            digest.update(image.sha256.encode())
            parts.append(image)
        else:
            digest.update(item["value"].encode("utf-8", "replace"))
            parts.append(item["value"])
    messages = [Message("user", tuple(parts))]
    if system_prompt:
        messages.insert(0, Message("system", (system_prompt,)))
    return Task(
        id=f"{dataset}/{name}{digest.hexdigest()[:12]}",
        messages=tuple(messages),
        data_source=dataset,
    )


def prediction(trajectory: Trajectory) -> str:
    """What VLMEvalKit scores: the answer, or else what the last turn says after its thinking."""
    text = trajectory.answer
    if text is None and trajectory.turns:
        text = trajectory.turns[-1].text.rpartition("</think>")[2]
    text = (text or "").strip().encode("utf-8", "replace").decode("utf-8")
    return text[-LONGEST_PREDICTION:] or UNANSWERED


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
