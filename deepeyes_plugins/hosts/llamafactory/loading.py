"""What stands around LLaMA-Factory's reading of a data set for one of our formatters.

It reads a file with Hugging Face datasets before it asks for a converter. So here the settings that
streaming images needs are made, and what goes wrong in reading is told by file and row.
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
    """Put :func:`load` around the function of LLaMA-Factory that reads a data set.

    Args:
        loader: ``llamafactory.data.loader``.

    Raises:
        AttributeError: There is no such function any more.
    """
    theirs = getattr(loader, _READER)
    if getattr(theirs, "func", None) is not load:
        setattr(loader, _READER, functools.partial(load, theirs))


def load(
    theirs: Callable[..., Any],
    dataset_attr: DatasetAttr,
    model_args: Any,
    data_args: DataArguments,
    training_args: Any,
) -> Any:
    """Read a data set.

    Args:
        theirs: LLaMA-Factory's function, which does it.
        dataset_attr: The entry of dataset_info.json.
        model_args: Of the run.
        data_args: Of the run.
        training_args: Of the run; what streaming needs is set where it was left at its default.

    Raises:
        DataError: The entry is not supported, or the files cannot be read; rows are named.
    """
    if dataset_attr.formatting not in formatters():
        return theirs(dataset_attr, model_args, data_args, training_args)
    row_form(dataset_attr)  # What it refuses is said before a long file is read.
    if data_args.streaming:
        _prepare_streaming(dataset_attr, training_args)
    try:
        return theirs(dataset_attr, model_args, data_args, training_args)
    except (DataError, RowError, SettingsError):
        raise
    # ValueError: of datasets, where files have no rows.
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        files = data_files(dataset_attr, data_args)
        problems = list(islice(_problems(files), _MOST_NAMED))
        if not problems:
            raise
        raise DataError("\n".join(problems)) from error


def _prepare_streaming(dataset_attr: DatasetAttr, training_args: Any) -> None:
    """Set what LLaMA-Factory 0.9.5 needs to stream images, in one process, too.

    A local file is cut into as many shards as there are workers, with none into none. And the main
    process would read batches and hand each process its rows, of which images have several.
    """
    if dataset_attr.load_from == "file" and not training_args.dataloader_num_workers:
        training_args.dataloader_num_workers = 1
        logger.warning("streaming a local file takes a worker: dataloader_num_workers is set to 1")
    accelerator = training_args.accelerator_config
    if accelerator.dispatch_batches is None:
        accelerator.dispatch_batches = False
        logger.warning(
            "batches with images cannot be cut: accelerator_config is set to "
            "{dispatch_batches: false}"
        )
    elif accelerator.dispatch_batches:
        logger.warning(
            "accelerator_config has dispatch_batches: true, which does not work with images; "
            "false does"
        )


def _problems(files: list[Path]) -> Iterator[str]:
    """Yield what keeps files from being read."""
    for file in files:
        is_empty = True
        for row in training_rows(file):
            is_empty = False
            if (found := row.finding) is not None:
                yield str(Problem(file, row.number, found.key, found.reason, "error"))
        if is_empty:
            yield str(Problem(file, None, "", "the file has no rows", "error"))
