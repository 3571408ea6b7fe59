"""RL dataset for verl whose rows are checked before training starts."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from verl.utils.dataset.rl_dataset import RLHFDataset

from deepeyes_plugins.data.check.rl import RowRules
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.rl_rows import (
    data_source,
    environment_name,
    ground_truth,
    prompt_messages,
)
from deepeyes_plugins.data.row_store import IMAGE_SIZES, Rows, store_files
from deepeyes_plugins.environments.preflight import check_tools
from deepeyes_plugins.hosts.transformers.images import check_image_settings
from deepeyes_plugins.hosts.transformers.token_counter import Chat, chat_lengths
from deepeyes_plugins.hosts.verl.register import AGENT_LOOP
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, IMAGE_PLACEHOLDER
from deepeyes_plugins.protocol.observations import defuse
from deepeyes_plugins.rewards.scorer import Scorer, configured_judge
from deepeyes_plugins.settings import load_settings

logger = logging.getLogger(__name__)

BAD_ROWS = ("stop", "drop")
_PROMPTS_AT_A_TIME = 256


class DeepEyesDataset(RLHFDataset):
    """RL rows with decodable images, a ground truth, a known environment and a known reward.

    Images are passed to the agent loop as encoded file bytes: tools get them in their original
    size, and no pixels are sent between processes.

    Additional keys of verl's ``data`` section. Checked rows are stored in ``cache_dir`` (about the
    size of the files)::

        data:
          agent_config: recipes/agent.yaml  # environment of files without env_name, reward names
          bad_rows: stop                    # or drop: train without them and log them
          media_root: null                  # folder of image paths; default: the file's folder
          check_processes: null             # processes of the check; default: one per CPU core
    """

    dataframe: Rows

    def _read_files_and_tokenize(self) -> None:
        """Check the files, or load the stored result, and select rows as verl does.

        Raises:
            DataError: Rows cannot be used and ``data.bad_rows`` is ``stop``, or a file cannot be
                read; the message names them.
            SettingsError: A reward needs a judge that is not configured, a tool lacks its key or
                files, or the image processor does not support ``data.mm_processor_kwargs``.
            ValueError: ``data.bad_rows`` is neither ``stop`` nor ``drop``.
        """
        policy = self.config.get("bad_rows", "stop")
        if policy not in BAD_ROWS:
            raise ValueError(f"data.bad_rows is {policy!r}; it must be one of {BAD_ROWS}")
        for file in self.data_files:
            if not str(file).endswith(".parquet"):
                raise DataError(f"{file}: not a parquet file")
        image_processor = getattr(self.processor, "image_processor", None)
        if image_processor is not None:
            check_image_settings(image_processor, self.mm_processor_kwargs or {})
        settings = load_settings(self.config.get("agent_config"))
        media_root = self.config.get("media_root")
        self._rules = RowRules(
            environment=settings.environment,
            sources=settings.rewards.sources,
            media_root=None if media_root is None else Path(media_root),
        )
        stored = store_files(
            list(map(Path, self.data_files)),
            Path(self.cache_dir) / "deepeyes",
            self._rules,
            processes=self.config.get("check_processes"),
            keep_bad=policy == "drop",
        )
        used: list[int] = []
        first = 0
        for file in stored:
            warnings = Counter((warning.key, warning.reason) for warning in file.report.warnings)
            for (key, reason), count in warnings.items():
                logger.warning("%s: %s: %s (%d rows)", file.report.file, key, reason, count)
            bad = {problem.row for problem in file.report.errors}
            if policy == "stop" or None in bad:
                file.report.raise_if_bad()
            elif bad:
                logger.warning("rows are dropped. %s", file.report.describe())
            used += [first + at for at in range(file.report.rows) if at + 1 not in bad]
            first += file.report.rows
        absent = {"env_name": self._rules.environment}
        rows = Rows(stored, absent).select(used)
        self.dataframe = self.maybe_filter_out_long_prompts(self._sample(rows))
        logger.info("%d of %d rows are used", len(self.dataframe), len(rows))
        judge = configured_judge(settings.judge)
        Scorer(settings.rewards, judge, settings.plugins).check(self._references())
        check_tools(settings, self._places())

    def _references(self) -> Iterator[tuple[str, str]]:
        for at in range(len(self.dataframe)):
            row = self.dataframe.read(at, ("data_source", "reward_model"))
            yield data_source(row), ground_truth(row)

    def _places(self) -> Iterator[tuple[str, str]]:
        for at in range(len(self.dataframe)):
            row = self.dataframe.read(at, ("data_source", "env_name"))
            yield environment_name(row, self._rules.environment), data_source(row)

    def _sample(self, rows: Rows) -> Rows:
        """Select ``train_max_samples`` rows, reproducibly even without a seed."""
        if not 0 < self.max_samples < len(rows):
            return rows
        if not self.shuffle:
            return rows.select(range(self.max_samples))
        generator = np.random.default_rng(self.seed or 0)
        every = np.arange(len(rows))
        return rows.select(generator.choice(every, self.max_samples, replace=False).tolist())

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """Drop prompts longer than ``max_prompt_length`` without decoding images.

        The length includes the prefill ``<think>``.
        """
        if not self.filter_overlong_prompts:
            return dataframe
        lengths = self._prompt_lengths(dataframe)
        used = [at for at, length in enumerate(lengths) if length <= self.max_prompt_length]
        if len(used) < len(dataframe):
            logger.warning(
                "%d of %d prompts are longer than data.max_prompt_length=%d tokens and dropped",
                len(dataframe) - len(used),
                len(dataframe),
                self.max_prompt_length,
            )
        return dataframe.select(used)

    def _build_messages(self, example: dict[str, Any], key: str) -> list[dict[str, Any]]:
        messages = prompt_messages({"prompt": example[key], "images": example.get("images")})
        return list(map(_chat_message, messages))

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return a row in the format of agent loops."""
        row: dict[str, Any] = super().__getitem__(item)
        if "agent_name" in row:
            row["agent_name"] = row["agent_name"] or AGENT_LOOP
        return row

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the rows too: they are file names that any process can memory-map."""
        return self.__dict__.copy()

    @classmethod
    async def process_vision_info(cls, messages: Any, image_patch_size: Any, config: Any) -> Any:
        """Decode images for verl's own agent loops."""
        messages = await asyncio.to_thread(_with_pictures, messages)
        return await super().process_vision_info(messages, image_patch_size, config)

    @classmethod
    def _process_multi_modal_info(cls, messages: Any, image_patch_size: Any, config: Any) -> Any:
        return super()._process_multi_modal_info(_with_pictures(messages), image_patch_size, config)

    def _prompt_lengths(self, rows: Rows) -> Iterator[int]:
        """Yield the number of tokens of each prompt, from its text and image sizes."""
        for start in range(0, len(rows), _PROMPTS_AT_A_TIME):
            chats: list[Chat] = []
            for at in range(start, min(start + _PROMPTS_AT_A_TIME, len(rows))):
                row = rows.read(at, (self.prompt_key, IMAGE_SIZES))
                turns = [(each["role"], _plain(each["content"])) for each in row[self.prompt_key]]
                chats.append((turns, [(width, height) for width, height in row[IMAGE_SIZES]]))
            yield from chat_lengths(
                chats,
                self.tokenizer,
                self.processor,
                prefill=DEEPEYES_V2.prefill,
                overrides=self.mm_processor_kwargs,
                options=self.apply_chat_template_kwargs,
            )


def _plain(content: str) -> str:
    """Escape control strings except image placeholders, as in the prompt."""
    return IMAGE_PLACEHOLDER.join(map(defuse, content.split(IMAGE_PLACEHOLDER)))


def _chat_message(message: Message) -> dict[str, Any]:
    """Convert to the chat format, with images as encoded bytes."""
    if not message.images:
        return {"role": message.role, "content": message.text}
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "bytes": part.data}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}


def _with_pictures(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": EncodedImage(entry["bytes"]).pil()}
                if "bytes" in entry
                else entry
                for entry in message["content"]
            ],
        }
        if isinstance(message["content"], list)
        else dict(message)
        for message in messages
    ]
