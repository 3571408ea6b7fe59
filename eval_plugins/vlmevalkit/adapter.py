"""VLMEvalKit model ``DeepEyesV2``: runs one agent trajectory per sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from vlmeval.api.base import BaseAPI

from deepeyes_plugins.environments.preflight import check_tools
from deepeyes_plugins.printable import printable
from deepeyes_plugins.rollout import EndReason, Task, Trajectory
from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.rollout.trajectory import MessageRecord
from eval_plugins.cells import truncated_to_cell
from eval_plugins.vlmevalkit.constants import UNANSWERED
from eval_plugins.vlmevalkit.runner import EpisodeRunner
from eval_plugins.vlmevalkit.samples import Item, annotate, make_task
from eval_plugins.vlmevalkit.settings import load_evaluation

logger = logging.getLogger(__name__)


class DeepEyesV2(BaseAPI):
    """A DeepEyes agent: the model on an OpenAI-compatible server, the tools in this process.

    Failed requests are retried within the trajectory. A sample that still fails is reported as
    failed with its reason; VLMEvalKit's ``--reuse`` repeats it.
    """

    is_api = True
    allowed_types: ClassVar[list[str]] = ["text", "image"]
    INTERLEAVE = True

    def __init__(
        self,
        agent_config: str | None = None,
        retry: int | None = None,
        verbose: bool = False,
        fail_msg: str = "Failed to obtain answer via API.",
        **settings: Any,
    ) -> None:
        """Read the settings and connect to the model's servers.

        Args:
            agent_config: Path of agent.yaml; by default what ``DEEPEYES_AGENT_CONFIG`` names.
            retry: VLMEvalKit's ``--retry``: maximum number of attempts per request, unless a
                setting gives ``retries``.
            verbose: Print answers and failures.
            fail_msg: Prediction of a failed sample, by which VLMEvalKit recognises it.
            **settings: See :func:`~eval_plugins.vlmevalkit.settings.load_evaluation`.

        Raises:
            SettingsError: A setting is wrong; the message names it.
            UnknownNameError: The agent's environment is not registered.
            InfrastructureError: A server does not respond, or serves several models and none is
                chosen.
        """
        evaluation = load_evaluation(agent_config, attempts=retry, **settings)
        agent = self._agent = evaluation.agent
        super().__init__(
            retry=1,
            wait=0,
            system_prompt=evaluation.prompt.resolve(agent),  # Validates the prompt settings.
            verbose=verbose,
            fail_msg=fail_msg,
        )
        self._log = TrajectoryLog(agent.trajectories) if agent.trajectories is not None else None
        self._prompt_of = cache(partial(evaluation.prompt.resolve, agent))
        self._datasets: dict[str, Any] = {}
        self._runner = EpisodeRunner.shared(agent, evaluation.server)

    def set_dump_image(self, dump_image_func: Callable[..., Any]) -> None:
        """Set the function that writes a dataset's images, and remember its dataset.

        VLMEvalKit calls it before the first sample; an exception fails the dataset.

        Raises:
            SettingsError: A tool that the dataset needs lacks its key or files.
        """
        super().set_dump_image(dump_image_func)
        dataset = getattr(dump_image_func, "__self__", None)
        if dataset is not None:
            check_tools(self._agent, [(self._agent.environment, dataset.dataset_name)])
            self._datasets[dataset.dataset_name] = dataset

    def use_custom_prompt(self, dataset: str) -> bool:
        """Return whether :meth:`build_prompt` supports this dataset."""
        return dataset in self._datasets

    def build_prompt(self, line: Mapping[str, Any], dataset: str) -> Any:
        """Build the dataset's own prompt and add the sample's index and original image."""
        return annotate(self._datasets[dataset].build_prompt(line), line)

    def generate(self, message: Any, dataset: str | None = None, **_: Any) -> str:
        """Answer a sample.

        Args:
            message: Text, an image's path, a part, or a list of those; parts may have roles.
            dataset: Name of the dataset.

        Returns:
            The prediction; for a failed sample the failure message and the reason.
        """
        return self._answer(lambda: self._items(message), dataset)

    def chat(self, messages: Sequence[Mapping[str, Any]], **keywords: Any) -> str:
        """Answer the last message of a conversation, given the earlier messages.

        Args:
            messages: ``{"role": …, "content": …}`` in order; contents as for :meth:`generate`.
            **keywords: ``dataset`` is its name.

        Returns:
            As :meth:`generate`.
        """
        return self._answer(
            lambda: [
                {**item, "role": message["role"]}
                for message in messages
                for item in self._items(message["content"])
            ],
            keywords.get("dataset"),
        )

    def generate_inner(
        self, inputs: Sequence[Item], dataset: str | None = None, **_: Any
    ) -> tuple[int, str, str]:
        """Run one trajectory.

        Args:
            inputs: The sample's parts in order.
            dataset: Name of the dataset.

        Returns:
            VLMEvalKit's triple of code, prediction and log line. After an infrastructure error the
            code is not 0, and the prediction is the failure message with the reason.

        Raises:
            OSError: An image of the sample cannot be read.
            ValueError: The sample has an unknown format.
        """
        benchmark = dataset or ""
        task = make_task(inputs, benchmark, self._prompt_of(benchmark))
        trajectory, images = self._runner.run(task)
        if self._log is not None:
            self._label(trajectory, task)
            self._log.append(trajectory, [*task.images, *images])
        if trajectory.end_reason is EndReason.INFRASTRUCTURE:
            logger.warning("%s failed: %s", task.id, trajectory.error)
            return -1, f"{self.fail_msg} {trajectory.error}", f"{task.id}: {trajectory.error}"
        summary = f"{task.id}: {trajectory.end_reason} after {len(trajectory.turns)} turns"
        return 0, prediction(trajectory), summary

    # Conversations go through `chat`; harnesses test for this attribute.
    chat_inner = generate_inner

    def close(self) -> None:
        """Close the connections; also done when the interpreter exits."""
        self._runner.close()

    def _answer(self, items: Callable[[], list[Item]], dataset: str | None) -> str:
        """Run the trajectory of a sample; any exception fails this sample only."""
        try:
            code, text, log = self.generate_inner(items(), dataset)
        except Exception as error:
            logger.warning("a sample of %s failed", dataset, exc_info=True)
            code, text, log = -1, f"{self.fail_msg} {error!r}", repr(error)
        if self.verbose:
            said = text if code == 0 else f"{text}\n{log}"
            print(printable(said, lines=True), flush=True)
        return text

    def _items(self, message: Any) -> list[Item]:
        """Return the parts of a message; unlike BaseAPI's preprocessing, keep their roles."""
        kind = self.check_content(message)
        if kind not in ("str", "dict", "liststr", "listdict"):
            raise ValueError(f"the sample has an unknown format: {message!r:.200}")
        if kind == "liststr":
            return list(self.preproc_content(message))
        items = self.preproc_content(message) if kind == "str" else message
        return [self._fetched(item) for item in ([items] if kind == "dict" else items)]

    def _fetched(self, item: Item) -> Item:
        """Return the part; an image given by URL or content is replaced by a file's path."""
        if item["type"] != "image" or Path(item["value"][:4096]).is_file():
            return item
        return {**item, **self.preproc_content([dict(item)])[0]}

    def _label(self, trajectory: Trajectory, task: Task) -> None:
        trajectory.prompt = [MessageRecord.of(message) for message in task.messages]
        trajectory.labels = {"benchmark": task.data_source, "model": self._runner.model}
        if "index" in task.metadata:
            trajectory.labels["index"] = task.metadata["index"]


def prediction(trajectory: Trajectory) -> str:
    """Return the text that VLMEvalKit scores.

    That is the answer or, without one, the last turn's text after its thinking. A text that is too
    long for a spreadsheet cell is truncated to its end, which holds the answer.
    """
    text = trajectory.answer
    if text is None and trajectory.turns:
        text = trajectory.turns[-1].text.rpartition("</think>")[2]
    text = (text or "").encode("utf-8", "replace").decode("utf-8")
    return truncated_to_cell(text.strip()).strip() or UNANSWERED
