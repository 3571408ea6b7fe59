"""The SFT recipes are read by LLaMA-Factory's own parser, and what they name exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from llamafactory.data.template import TEMPLATES
from llamafactory.extras.constants import SUPPORTED_MODELS
from llamafactory.hparams import get_train_args

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("sft*.yaml"))
NAMES = {"sft", "sft_32b", "sft_qwen3_vl", "sft_lora_single_gpu"}
SOURCES = re.compile(r"# \[(code|LLaMA-Factory default|ours, not measured)\]")
PLAIN_KEYS = {  # Paths, and what is asked for rather than chosen.
    *("stage", "do_train", "dataset_dir", "media_dir", "dataset", "output_dir", "logging_steps"),
    *("plot_loss", "report_to"),
}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def parsed(path: Path, tmp_path: Path, **changes: Any) -> Any:
    """As far as a machine without GPUs and DeepSpeed goes."""
    recipe = yaml.safe_load(path.read_text())
    recipe.pop("deepspeed", None)
    return get_train_args({**recipe, "use_cpu": True, "output_dir": str(tmp_path), **changes})


def test_all_of_them_are_there() -> None:
    assert {path.stem for path in RECIPES} == NAMES


@each_recipe
def test_llamafactory_takes_the_recipe(path: Path, tmp_path: Path) -> None:
    model, data, training, method, _ = parsed(path, tmp_path)

    assert model.model_name_or_path in {
        place for models in SUPPORTED_MODELS.values() for place in models.values()
    }
    assert data.template in TEMPLATES and data.template.startswith("deepeyes_")
    assert ("qwen3" in data.template) == ("Qwen3" in model.model_name_or_path)
    assert model.image_max_pixels == 262144 and data.cutoff_len in (20480, 16384)
    assert training.bf16 and training.num_train_epochs == 3
    assert method.freeze_vision_tower and method.freeze_multi_modal_projector


@each_recipe
def test_an_unknown_key_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cutoff_length"):
        parsed(path, tmp_path, cutoff_length=1)


@each_recipe
def test_files_exist(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    named = re.findall(r"recipes/[\w/]+\.(?:json|yaml)", path.read_text())
    assert named and all((ROOT / name).is_file() for name in named)
    if recipe["finetuning_type"] == "full":
        settings = json.loads((ROOT / recipe["deepspeed"]).read_text())
        assert settings["zero_optimization"]["stage"] == 3
        assert settings["bf16"]["enabled"] == "auto"


@each_recipe
def test_every_value_says_where_it_comes_from(path: Path) -> None:
    for line in path.read_text().splitlines():
        key = re.match(r"(\w+):", line)
        if key and key[1] not in PLAIN_KEYS:
            assert SOURCES.search(line), line
