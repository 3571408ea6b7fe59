"""Exports of checkpoints: published names, the same tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from deepeyes_plugins.checkpoints import PUBLISHED, CheckpointError, export, published_name
from deepeyes_plugins.cli.main import app
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from tests.verl.tiny_qwen3_vl import make_tiny_qwen3_vl

CORPUS = ["What colour is the dot?"]
RESTS = ("layers.0.self_attn.q_proj.weight", "embed_tokens.weight", "blocks.0.attn.qkv.bias")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers saves it, with what a training leaves beside it."""
    folder = tmp_path_factory.mktemp("saved")
    make_tiny_qwen2_5_vl(folder, CORPUS)
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"x")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    return folder


def load(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load(folder).state_dict() for folder in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_the_exported_model_has_the_published_names_and_every_other_file(
    saved: Path, tmp_path: Path
) -> None:
    answer = CliRunner().invoke(app, ["model", "export", str(saved), str(tmp_path / "out")])

    assert answer.exit_code == 0, answer.output
    assert "81 tensors, 30 of them renamed; 7 other files" in answer.output
    exported = load_file(tmp_path / "out" / "model.safetensors")
    parts = {name.split(".layers.")[0].split(".blocks.")[0] for name in exported}
    assert {"model", "visual", "lm_head.weight", "model.embed_tokens.weight"} <= parts
    assert not any(name.startswith(("model.visual", "model.language_model")) for name in exported)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # which transformers requires
    assert same_weights(saved, tmp_path / "out")
    for file in ("config.json", "tokenizer.json", "additional_chat_templates/tools.jinja"):
        assert (tmp_path / "out" / file).read_bytes() == (saved / file).read_bytes()
    assert not (tmp_path / "out" / "checkpoint-3").exists()
    assert not (tmp_path / "out" / "training_args.bin").exists()


def test_names_that_are_published_already_stay(tmp_path: Path) -> None:
    make_tiny_qwen3_vl(tmp_path / "saved", CORPUS)

    assert not export(tmp_path / "saved", tmp_path / "out").renamed
    assert same_weights(tmp_path / "saved", tmp_path / "out")


def test_shards_and_their_index_are_renamed_and_tied_weights_stay_tied(
    saved: Path, tmp_path: Path
) -> None:
    model = load(saved)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied", max_shard_size="200KB")

    export(tmp_path / "tied", tmp_path / "out")

    weight_map = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())[
        "weight_map"
    ]
    assert len(set(weight_map.values())) > 1
    assert "lm_head.weight" not in weight_map
    for name, file in weight_map.items():
        assert name in load_file(tmp_path / "out" / file)
    tied = load(tmp_path / "out")
    assert tied.lm_head.weight is tied.model.language_model.embed_tokens.weight
    assert same_weights(tmp_path / "tied", tmp_path / "out")


@given(
    st.sampled_from(sorted(PUBLISHED)),
    st.sampled_from(
        ["visual", "model.visual", "model", "model.language_model", "language_model.model"]
    ),
    st.sampled_from(RESTS) | st.text("abc.", min_size=1),
)
def test_a_name_has_one_published_form(model_type: str, prefix: str, rest: str) -> None:
    published = published_name(f"{prefix}.{rest}", model_type)

    assert published.endswith(rest)
    assert published_name(published, model_type) == published


def truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)


def collide(folder: Path) -> None:
    tensor = torch.zeros(1)
    names = ("visual.x", "model.visual.x")
    save_file({name: tensor.clone() for name in names}, folder / "model.safetensors")


def lose_a_shard(folder: Path) -> None:
    index = {"weight_map": {"model.visual.lost": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FAULTS = {
    "another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        r"config\.json: .* qwen3_vl.* not for the model_type 'llama'",
    ),
    "no configuration": (
        lambda folder: (folder / "config.json").unlink(),
        "config.json is missing",
    ),
    "not merged": (lambda folder: (folder / "model.safetensors").unlink(), "verl.model_merger"),
    "truncated": (truncate, "model.safetensors has 100,000 bytes, .* truncated"),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"PK\x03\x04"),
        "not a safetensors file",
    ),
    "two tensors of one name": (collide, "are both visual.x"),
    "a shard is missing": (lose_a_shard, "differ in 82 tensors"),
}


@pytest.mark.parametrize(("damage", "reason"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_exported_is_named_and_nothing_is_left(
    saved: Path, tmp_path: Path, damage: Any, reason: str
) -> None:
    shutil.copytree(saved, tmp_path / "in")
    damage(tmp_path / "in")

    with pytest.raises(CheckpointError, match=reason):
        export(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_existing_files_are_never_overwritten(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")

    with pytest.raises(CheckpointError, match="not an empty folder"):
        export(saved, tmp_path)
    with pytest.raises(CheckpointError, match="inside of"):
        export(saved, saved / "out")
    assert not (saved / "out").exists()
