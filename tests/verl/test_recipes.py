"""The RL recipes load by verl's own mechanism, and what they name exists."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import verl.trainer.config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from deepeyes_plugins.settings import load_settings

ROOT = Path(__file__).parents[2]


def load(folder: str) -> Any:
    with initialize_config_dir(str(ROOT / folder), version_base=None):
        return compose("rl")


@pytest.mark.parametrize("folder", ["recipes", "recipes/tiny"])
def test_the_recipe_loads_on_top_of_verls_defaults(folder: str) -> None:
    config = load(folder)
    assert config.algorithm.adv_estimator == "grpo"
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "deepeyes"
    assert config.trainer.use_v1 is True


@pytest.mark.parametrize("folder", ["recipes", "recipes/tiny"])
def test_what_the_recipe_names_exists(folder: str) -> None:
    config = load(folder)
    entries = (config.data.custom_cls, config.reward.custom_reward_function)
    for entry in entries:
        module = importlib.import_module(entry.path.removeprefix("pkg://"))
        assert hasattr(module, entry.name)
    settings = load_settings(ROOT / config.deepeyes.agent_config)
    assert settings.environment == "deepeyes_v2"


@pytest.mark.parametrize("folder", ["recipes", "recipes/tiny"])
def test_the_recipe_invents_no_keys(folder: str) -> None:
    defaults = OmegaConf.load(
        Path(verl.trainer.config.__file__).parent / "_generated_ppo_trainer.yaml"
    )
    ours = {
        "deepeyes",
        "data.bad_rows",
        "actor_rollout_ref.model.override_config",
        "actor_rollout_ref.actor.fsdp_config.mixed_precision",
        "actor_rollout_ref.ref.fsdp_config.mixed_precision",
        "reward.custom_reward_function.reward_kwargs",
        "ray_kwargs.ray_init",
        "trainer.v1.sampler.sampler_kwargs",
    }

    def unknown(mine: Any, theirs: Any, path: str) -> list[str]:
        found = []
        for key in mine:
            where = f"{path}.{key}".lstrip(".")
            if where in ours or where in ("hydra", "defaults"):
                continue
            if key not in theirs.keys():  # noqa: SIM118 - `in` hides keys that must be filled in
                found.append(where)
            elif OmegaConf.is_dict(mine._get_node(key)):
                found += unknown(mine[key], theirs[key], where)
        return found

    recipe = OmegaConf.load(ROOT / folder / "rl.yaml")
    assert unknown(recipe, defaults, "") == []
