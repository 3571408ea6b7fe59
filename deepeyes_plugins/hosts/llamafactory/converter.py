"""LLaMA-Factory dataset converter for registered formatters.

LLaMA-Factory passes a converter one row at a time, without its number, in several processes. To
name bad rows before training starts, the data file is checked when the converter is created.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import pyarrow as pa
from llamafactory.data.converter import DatasetConverter

from deepeyes_plugins.data.check.sft import check_sft_file, image_findings
from deepeyes_plugins.data.contracts import Conversation, RowError
from deepeyes_plugins.data.dataset_info import (
    DATASET_INFO,
    IGNORED,
    KEY_TAGS,
    READ,
    REFUSED,
    ROLE_TAGS,
    RowForm,
    media_roots,
)
from deepeyes_plugins.data.findings import DataError, Report
from deepeyes_plugins.data.formatter import check_opening, format_row
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.data.media import MediaError, MediaRoot
from deepeyes_plugins.errors import SettingsError

if TYPE_CHECKING:
    from llamafactory.data.parser import DatasetAttr
    from llamafactory.hparams import DataArguments

BAD_ROWS_VARIABLE = "DEEPEYES_SFT_BAD_ROWS"
"""Environment variable for bad rows: ``stop`` before training (the default), or ``drop`` them."""

BadRows = Literal["stop", "drop"]

_SUFFIXES = (".json", ".jsonl", ".parquet")
_PATHS = pa.list_(pa.string())
_NO_IMAGES = pa.array([None], _PATHS)

logger = logging.getLogger(__name__)


def make_converter(
    name: str, dataset_attr: DatasetAttr, data_args: DataArguments
) -> FormatterConverter:
    """Create a converter and, in one process per machine, check its data file.

    Args:
        name: Name of a registered formatter.
        dataset_attr: LLaMA-Factory's entry of dataset_info.json.
        data_args: LLaMA-Factory's data arguments.

    Raises:
        DataError: Rows cannot be used and bad rows stop the run (the message names them), or
            ``media_dir`` cannot be used.
        SettingsError: ``DEEPEYES_SFT_BAD_ROWS`` is neither ``stop`` nor ``drop``, or
            ``media_dir`` is a zip file, which other templates cannot read.
    """
    prefill = _prefill(data_args)
    files = data_files(dataset_attr, data_args)
    converter = FormatterConverter(
        dataset_attr,
        data_args,
        name,
        bad_rows := _bad_rows(),
        media=_media(dataset_attr, data_args, archives=prefill is not None),
        prefill=prefill or "",
        # An undecodable image would stop tokenization or a training step.
        decodes=bad_rows == "drop" or not files,
    )
    if os.environ.get("LOCAL_RANK", "0") in ("0", "-1"):
        for path in files:
            _report(converter.check(path), converter.bad_rows)
    return converter


@dataclass
class FormatterConverter(DatasetConverter):
    """Converts rows to LLaMA-Factory's aligned format.

    ``datasets`` derives its cache key from the fields.

    Attributes:
        name: Name of the formatter.
        bad_rows: Treatment of rows that cannot be used.
        media: Root of image paths.
        prefill: Text that every assistant turn must start with.
        decodes: Whether images are decoded here, because no check of the file has done so.
        form: Location of the conversation in a row.
    """

    name: str
    bad_rows: BadRows
    media: MediaRoot
    prefill: str = ""
    decodes: bool = False
    form: RowForm = field(init=False)

    def __post_init__(self) -> None:
        """Read the row format from dataset_info.json.

        Raises:
            DataError: The entry is not supported.
        """
        self.form = row_form(self.dataset_attr)

    def check(self, path: Path) -> Report:
        """Check the rows of a file and their images; column types are already checked."""
        return check_sft_file(
            path,
            self.media,
            formatter=self._conversation,
            limit=None if self.dataset_attr.num_samples else self.data_args.max_samples,
            is_loaded=True,
        )

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Align one row.

        Raises:
            DataError: A column that dataset_info.json names is missing.
            RowError: The row cannot be used, and bad rows stop the run.
        """
        if missing := self.form.missing(example):
            raise DataError(f"{self.dataset_attr}: {missing}")
        try:
            conversation = self._conversation(example)
            if self.decodes:
                for finding in image_findings(conversation, self.media):
                    raise RowError(finding.reason)
            images = list(map(self.media.located, conversation.images))
        except RowError as error:
            if self.bad_rows == "stop":
                beginning = repr(next(iter(example.values()), None))[:200]
                raise RowError(f"{self.dataset_attr}: {error}. The row is: {beginning}") from error
            # LLaMA-Factory drops rows without a prompt and a response.
            conversation, images = Conversation(()), []
        return self._align(conversation, images)

    def _conversation(self, row: Mapping[str, Any]) -> Conversation:
        conversation = format_row(formatters()[self.name], self.form.read(row))
        check_opening(conversation, self.prefill)
        return conversation

    def _align(self, conversation: Conversation, images: list[Any]) -> dict[str, Any]:
        turns = list(conversation.turns)
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
        messages = [{"role": role, "content": text} for role, text in turns]
        aligned = {
            "_prompt": messages[:-1],
            "_response": messages[-1:],
            "_system": system,
            "_tools": "",
            "_images": images or None,
            "_videos": None,
            "_audios": None,
        }
        if not self.data_args.streaming:
            _type_images(aligned, images)
        return aligned


def row_form(dataset_attr: DatasetAttr) -> RowForm:
    """Return the row format that an entry of dataset_info.json describes.

    Raises:
        DataError: The entry is not supported.
    """
    if dataset_attr.ranking:
        raise DataError(f"{dataset_attr}: ranking: true is for reward models, not for SFT")
    plain = type(dataset_attr)(dataset_attr.load_from, dataset_attr.dataset_name)
    columns, tags = (
        None
        if all(getattr(dataset_attr, name) == getattr(plain, name) for name in names)
        else {name: getattr(dataset_attr, name) for name in names}
        for names in ((*READ, *REFUSED, *IGNORED), (*KEY_TAGS, *ROLE_TAGS))
    )
    try:
        return RowForm.parse(columns, tags)
    except DataError as error:
        raise DataError(f"{dataset_attr}: {DATASET_INFO}: {error}") from error


def _type_images(aligned: dict[str, Any], images: list[Any]) -> None:
    """Give ``datasets`` the type of the image column as Arrow values.

    ``datasets`` infers the type of a column from the first 1,000 rows and fails if only later rows
    have images. The column ``images``, which tokenization replaces by one of the same name, passes
    the type on to that.
    """
    if not images:
        aligned["_images"] = aligned["images"] = _NO_IMAGES
    elif all(isinstance(image, str) for image in images):
        aligned["_images"], aligned["images"] = pa.array([images], _PATHS), _NO_IMAGES


def _prefill(data_args: DataArguments) -> str | None:
    """Return the prefill of a DeepEyes template; ``None`` for other templates."""
    from llamafactory.data.template import TEMPLATES

    from deepeyes_plugins.hosts.llamafactory.template import DeepEyesTemplate

    template = TEMPLATES.get(data_args.template)
    return template.prefill if isinstance(template, DeepEyesTemplate) else None


def _media(dataset_attr: DatasetAttr, data_args: DataArguments, *, archives: bool) -> MediaRoot:
    """Return the root of image paths; zip files only for templates that can read them."""
    is_local = dataset_attr.load_from in ("file", "script")
    if not is_local and not os.path.exists(data_args.media_dir or ""):
        return MediaRoot(None, setting="media_dir")
    try:
        also: tuple[Path, ...] = ()
        if is_local:
            folder = Path(data_args.dataset_dir)
            also = (folder, *media_roots(folder / dataset_attr.dataset_name))
        root = MediaRoot.open(data_args.media_dir, also, "media_dir")
    except MediaError as error:
        raise DataError(f"media_dir: {error}") from error
    if archives:
        return root
    if root.folder is None:
        raise SettingsError(
            f"media_dir is the zip file {root.archive}, which only the templates "
            f"deepeyes_qwen2_vl and deepeyes_qwen3_vl can read; template is {data_args.template}. "
            "Use one of these, or unpack the file."
        )
    return replace(root, archive=None, reads_archives=False)


def _bad_rows() -> BadRows:
    choice = os.environ.get(BAD_ROWS_VARIABLE, "stop")
    if choice not in get_args(BadRows):
        raise SettingsError(f"{BAD_ROWS_VARIABLE} is {choice!r}; it must be stop or drop")
    return cast(BadRows, choice)


def data_files(dataset_attr: DatasetAttr, data_args: DataArguments) -> list[Path]:
    """Return the files of a local dataset; empty for datasets of other kinds."""
    if dataset_attr.load_from != "file":
        return []
    path = Path(data_args.dataset_dir) / dataset_attr.dataset_name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.suffix in _SUFFIXES]


def _report(report: Report, bad_rows: BadRows) -> None:
    for problem in report.warnings[:10]:
        logger.warning("%s", problem)
    if len(report.warnings) > 10:
        logger.warning("%s: %d more such warnings", report.file, len(report.warnings) - 10)
    if report.ok:
        logger.info("%s: %d rows checked", report.file, report.rows)
    elif bad_rows == "drop" and report.is_readable and report.bad_rows < report.rows:
        logger.warning("dropping %d row(s). %s", report.bad_rows, report.describe())
    else:
        raise DataError(
            f"{report.describe()}\nFix them, or set {BAD_ROWS_VARIABLE}=drop to train without them."
        )
