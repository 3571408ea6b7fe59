"""Checkpoints in Hugging Face's layout: export under the published names of tensors."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deepeyes_plugins.files import PARTIAL, read_json

CONFIG = "config.json"
WEIGHTS = ".safetensors"
INDEX = "model.safetensors.index.json"

_PARTS = tuple(
    (part, re.compile(rf"(?:{prefixes})\.(?=.)"))
    for part, prefixes in (
        ("vision", r"(?:model\.)?visual"),
        ("head", r"(?:language_model\.)?lm_head"),
        ("language", r"model\.language_model|language_model\.model|model"),
    )
)
"""Prefixes under which transformers has saved each part, the first that matches."""
_QWEN2 = {"vision": "visual.", "head": "lm_head.", "language": "model."}
_QWEN3 = {"vision": "model.visual.", "head": "lm_head.", "language": "model.language_model."}
PUBLISHED = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN2),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _QWEN3),
}
"""Prefix of each part in the published checkpoints, by ``model_type``."""

_TRAINING_STATE = re.compile(r"checkpoint-\d+|global_step_\d+|training_args\.bin|optimizer\.pt")
_COPY_BYTES = 1 << 24
_LENGTH = struct.Struct("<Q")


class CheckpointError(ValueError):
    """A checkpoint cannot be exported; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        tensors: Number of tensors.
        renamed: New names of tensors by the old ones; tensors that kept theirs are not in it.
        files: Number of files that were copied unchanged.
    """

    tensors: int
    renamed: Mapping[str, str]
    files: int


def published_name(name: str, model_type: str) -> str:
    """Return the name of a tensor in the published checkpoints of its model.

    Args:
        name: The name under which any version of transformers saved it.
        model_type: A key of :data:`PUBLISHED`.
    """
    for part, prefix in _PARTS:
        if match := prefix.match(name):
            return PUBLISHED[model_type][part] + name[match.end() :]
    return name


def export(source: Path, target: Path) -> Exported:
    """Copy a checkpoint and rename its tensors to the published names.

    Only the headers of the weight files are read into memory. The target appears when it is
    complete. The state of a training (``checkpoint-100/``, ``training_args.bin``) is not copied.

    Args:
        source: Folder of the checkpoint, with config.json and safetensors files.
        target: Folder to write, which must not exist or be empty.

    Raises:
        CheckpointError: The checkpoint is incomplete or of a model that is not known.
        OSError: A file cannot be read or written, for instance because the disk is full.
    """
    model_type = _model_type(source)
    shards = sorted(path for path in source.iterdir() if path.suffix == WEIGHTS)
    if not shards:
        raise CheckpointError(
            f"{source} has no {WEIGHTS} files. Merge a checkpoint of verl first (python -m "
            "verl.model_merger merge), and save other formats with save_pretrained of transformers"
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{target} is inside of {source}: choose another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} is not an empty folder: choose another one, or remove it")
    partial = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        names: dict[str, str] = {}
        for shard in shards:
            with shard.open("rb") as file:
                header = _header(file, shard)
                _add(names, header, model_type, shard)
                _write(partial / shard.name, header, names, file)
        _write_index(source / INDEX, partial / INDEX, names)
        copied = sum(_copy(path, partial / path.name) for path in _side_files(source))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    renamed = {old: new for old, new in names.items() if old != new}
    return Exported(len(names), renamed, copied)


def _model_type(source: Path) -> str:
    path = source / CONFIG
    try:
        model_type = read_json(path.read_bytes())["model_type"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: name the folder of a checkpoint") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has no model_type ({error!r})") from error
    if model_type not in PUBLISHED:
        raise CheckpointError(
            f"{path}: the published names are known for {', '.join(PUBLISHED)}, not for the "
            f"model_type {model_type!r}"
        )
    return str(model_type)


def _header(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file; the file is then at its first tensor."""
    size = path.stat().st_size
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header: dict[str, Any] = read_json(file.read(min(length, size)))
        tensors = [fields for name, fields in header.items() if name != "__metadata__"]
        end = max((fields["data_offsets"][1] for fields in tensors), default=0)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error!r})") from error
    if size != file.tell() + end:
        raise CheckpointError(
            f"{path} has {size:,} bytes, its header describes {file.tell() + end:,}: it is "
            "truncated or damaged; copy or save it again"
        )
    return header


def _add(names: dict[str, str], header: Mapping[str, Any], model_type: str, path: Path) -> None:
    """Add the tensors of a file to the names of all, which must stay different."""
    taken = {new: old for old, new in names.items()}
    for old in header:
        if old == "__metadata__":
            continue
        new = published_name(old, model_type)
        if new in taken:
            raise CheckpointError(f"{path}: {old} and {taken[new]} are both {new}")
        taken[new] = old
        names[old] = new


def _write(path: Path, header: Mapping[str, Any], names: Mapping[str, str], data: BinaryIO) -> None:
    text = json.dumps({names.get(name, name): fields for name, fields in header.items()})
    encoded = text.encode()
    encoded += b" " * (-len(encoded) % _LENGTH.size)
    with path.open("wb") as file:
        file.write(_LENGTH.pack(len(encoded)) + encoded)
        shutil.copyfileobj(data, file, _COPY_BYTES)


def _write_index(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Rename the tensors in the index of the files, if there is one."""
    if not source.exists():
        return
    try:
        index = read_json(source.read_bytes())
        weight_map: dict[str, str] = index["weight_map"]
        differing = sorted(weight_map.keys() ^ names.keys())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} is not an index of tensors ({error!r})") from error
    if differing:
        raise CheckpointError(
            f"{source} and the {WEIGHTS} files differ in {len(differing)} tensors, for instance "
            f"{differing[0]}: a file is missing or superfluous"
        )
    index["weight_map"] = {names[name]: file for name, file in weight_map.items()}
    target.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _side_files(source: Path) -> Iterator[Path]:
    for path in source.iterdir():
        written = path.suffix == WEIGHTS or path.name == INDEX
        if not written and not _TRAINING_STATE.fullmatch(path.name):
            yield path


def _copy(source: Path, target: Path) -> int:
    """Copy a file or a folder; return the number of files."""
    if source.is_dir():
        shutil.copytree(source, target)
        return sum(path.is_file() for path in target.rglob("*"))
    shutil.copyfile(source, target)
    return 1
