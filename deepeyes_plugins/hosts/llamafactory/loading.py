"""Wrapper of LLaMA-Factory's dataset loader for registered formatters.

LLaMA-Factory reads a file with Hugging Face datasets before it creates a converter. The wrapper
sets what streaming images requires, and reports read errors with file and row.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any

from datasets.exceptions import DatasetGenerationError

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import training_rows
from deepeyes_plugins.data.findings import DataError, Problem
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.llamafactory.converter import data_files, row_form

if TYPE_CHECKING:
    from pathlib import Path

    from llamafactory.data.parser import DatasetAttr
    from llamafactory.hparams import DataArguments

_READER = "_load_single_dataset"
_MOST_NAMED = 10

logger = logging.getLogger(__name__)


def register(loader: ModuleType) -> None:
    """Wrap LLaMA-Factory's function that reads a dataset in :func:`load`.

    Args:
        loader: ``llamafactory.data.loader``.

    Raises:
        AttributeError: The function does not exist.
    """
    upstream = getattr(loader, _READER)
    if getattr(upstream, "func", None) is not load:
        setattr(loader, _READER, functools.partial(load, upstream))


def load(
    upstream: Callable[..., Any],
    dataset_attr: DatasetAttr,
    model_args: Any,
    data_args: DataArguments,
    training_args: Any,
) -> Any:
    """Read a dataset.

    Args:
        upstream: LLaMA-Factory's function, which reads the dataset.
        dataset_attr: The entry of dataset_info.json.
        model_args: Model arguments of the run.
        data_args: Data arguments of the run.
        training_args: Training arguments of the run; defaults that break streaming are changed.

    Raises:
        DataError: The entry is not supported, or the files cannot be read; rows are named.
    """
    if dataset_attr.formatting not in formatters():
        return upstream(dataset_attr, model_args, data_args, training_args)
    row_form(dataset_attr)  # Rejects an unsupported entry before a long file is read.
    if data_args.streaming:
        _prepare_streaming(dataset_attr, training_args)
    try:
        return upstream(dataset_attr, model_args, data_args, training_args)
    except (DataError, RowError, SettingsError):
        raise
    # `datasets` raises ValueError for files without rows.
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        files = data_files(dataset_attr, data_args)
        problems = list(islice(_problems(files), _MOST_NAMED))
        if not problems:
            raise
        raise DataError("\n".join(problems)) from error


def _prepare_streaming(dataset_attr: DatasetAttr, training_args: Any) -> None:
    """Set what LLaMA-Factory 0.9.5 needs to stream images, even in a single process.

    A local file is split into one shard per worker, so without workers there are no shards. With
    ``dispatch_batches`` the main process would slice batches by row, but an image has several rows.
    """
    if dataset_attr.load_from == "file" and not training_args.dataloader_num_workers:
        training_args.dataloader_num_workers = 1
        logger.warning("streaming a local file needs a worker: dataloader_num_workers is set to 1")
    accelerator = training_args.accelerator_config
    if accelerator.dispatch_batches is None:
        accelerator.dispatch_batches = False
        logger.warning(
            "batches with images cannot be dispatched: accelerator_config is set to "
            "{dispatch_batches: false}"
        )
    elif accelerator.dispatch_batches:
        logger.warning(
            "accelerator_config has dispatch_batches: true, which does not work with images: set "
            "it to false"
        )


def _problems(files: list[Path]) -> Iterator[str]:
    """Yield the problems that prevent files from being read."""
    for file in files:
        is_empty = True
        for row in training_rows(file):
            is_empty = False
            if (found := row.finding) is not None:
                yield str(Problem(file, row.number, found.key, found.reason, "error"))
        if is_empty:
            yield str(Problem(file, None, "", "the file has no rows", "error"))
