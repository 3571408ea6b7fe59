"""The RL recipes load by verl's own mechanism, pass its checks, and their numbers fit together."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import verl.trainer.config
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync
from verl.utils.config import omega_conf_to_dataclass, validate_config

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.settings import load_settings

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FULL_SIZE = ("rl", "rl_32b", "rl_v1", "rl_single_node", "rl_qwen3_vl")


def documented(word: str) -> tuple[str, ...]:
    """The overrides of the command in docs/rl.md that has ``word`` in it."""
    text = (ROOT / "docs/rl.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (command,) = [
        command
        for block in blocks
        for command in block.replace("\\\n", "").splitlines()
        if command.startswith("python -m verl.trainer.main_ppo") and word in command
    ]
    return tuple(part for part in shlex.split(command, comments=True) if "=" in part)


VARIANTS = {
    **{name: (RECIPES, name, ()) for name in FULL_SIZE},
    "lora": (RECIPES, "rl_single_node", documented("lora_rank")),
    "tiny": (RECIPES / "tiny", "rl", ()),
    "tiny, resumed": (RECIPES / "tiny", "rl", documented("deepeyes.run")),
}
IMAGES_PER_ROUND = 10
"""Of the protocol: what an observation may add at most."""

every_recipe = pytest.mark.parametrize("name", VARIANTS)
full_size = pytest.mark.parametrize("name", FULL_SIZE)


@cache
def load(name: str) -> Any:
    folder, recipe, overrides = VARIANTS[name]
    with initialize_config_dir(str(folder), version_base=None):
        return compose(recipe, overrides=list(overrides))


def recipe_files(name: str) -> Iterator[Path]:
    folder, recipe, _ = VARIANTS[name]
    yield folder / f"{recipe}.yaml"
    if "rl_base" in OmegaConf.load(folder / f"{recipe}.yaml").defaults:
        yield folder / "rl_base.yaml"


def settings_of(config: Any) -> Any:
    return load_settings(ROOT / config.deepeyes.agent_config)


def gpus(config: Any) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node


@every_recipe
def test_verl_accepts_the_recipe(name: str) -> None:
    config = copy.deepcopy(load(name))
    if name == "lora":
        # For vLLM the rank is looked up in vLLM itself, which is not installed here.
        config.actor_rollout_ref.rollout.name = "sglang"

    validate_config(config, need_reference_policy(config), need_critic(config))
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    omega_conf_to_dataclass(config.algorithm)

    assert config.algorithm.adv_estimator in ADV_ESTIMATOR_REGISTRY
    assert config.algorithm.adv_estimator == "deepeyes_grpo"
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "deepeyes"
    assert config.trainer.use_v1 is True


@every_recipe
def test_what_the_recipe_names_exists(name: str) -> None:
    config = load(name)
    sampler = config.trainer.v1.sampler.custom_sampler
    for entry in (config.data.custom_cls, config.reward.custom_reward_function, sampler):
        module = importlib.import_module(entry.path.removeprefix("pkg://"))
        assert hasattr(module, entry.name)
    settings = settings_of(config)
    assert settings.environment in environments()
    assert config.data.agent_config == config.deepeyes.agent_config


OURS = {
    "deepeyes",
    "data.agent_config",
    "data.cache_dir",
    "data.bad_rows",
    "data.media_root",
    "data.check_processes",
}
OPEN = {
    "hydra",
    "defaults",
    # Of verl's data classes, though not of its YAML.
    "actor_rollout_ref.rollout.limit_images",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision",
    # Handed on as they are: to vLLM, to our reward function and to ray.init.
    "actor_rollout_ref.rollout.engine_kwargs.vllm",
    "reward.custom_reward_function.reward_kwargs",
    "ray_kwargs.ray_init",
    "trainer.v1.sampler.sampler_kwargs",
}


def unknown_keys(mine: Any, theirs: Any, path: str = "") -> list[str]:
    found = []
    for key in mine:
        where = f"{path}.{key}".lstrip(".")
        if where in OURS | OPEN:
            continue
        if key not in theirs.keys():  # noqa: SIM118 - `in` hides keys that must be filled in
            found.append(where)
        elif OmegaConf.is_dict(mine._get_node(key)):
            found += unknown_keys(mine[key], theirs[key], where)
    return found


@every_recipe
def test_the_recipe_invents_no_keys(name: str) -> None:
    """A misspelt key would be ignored by verl without a word."""
    defaults = Path(verl.trainer.config.__file__).parent / "_generated_ppo_trainer.yaml"
    for file in recipe_files(name):
        assert unknown_keys(OmegaConf.load(file), OmegaConf.load(defaults)) == []


@full_size
def test_every_number_and_switch_says_where_it_comes_from(name: str) -> None:
    for file in recipe_files(name):
        bare = re.findall(r"^ *\w+: (?:[\d.e-]+|true|false) *$", file.read_text(), re.MULTILINE)
        assert bare == [], file


@every_recipe
def test_the_replay_buffer_is_of_the_trainers_mode(name: str) -> None:
    config = load(name)
    sampler, mode = config.trainer.v1.sampler.custom_sampler, config.trainer.v1.trainer_mode
    buffer = getattr(importlib.import_module(sampler.path.removeprefix("pkg://")), sampler.name)
    assert issubclass(buffer, ReplayBufferAsync) == (mode != "sync")


@full_size
def test_a_trajectory_fits_into_the_engine(name: str) -> None:
    config = load(name)
    data, rollout, actor = (
        config.data,
        config.actor_rollout_ref.rollout,
        config.actor_rollout_ref.actor,
    )
    longest = data.max_prompt_length + data.max_response_length
    assert (rollout.prompt_length, rollout.response_length) == (
        data.max_prompt_length,
        data.max_response_length,
    )
    assert rollout.max_model_len == longest
    assert rollout.enable_chunked_prefill or rollout.max_num_batched_tokens >= longest
    assert actor.ppo_max_token_len_per_gpu >= longest
    assert rollout.log_prob_max_token_len_per_gpu >= longest
    assert config.deepeyes.turn_tokens <= data.max_response_length
    limits = settings_of(config).limits
    assert limits.images <= IMAGES_PER_ROUND * limits.turns
    assert limits.images + IMAGES_PER_ROUND <= rollout.limit_images
    assert rollout.gpu_memory_utilization <= 0.8


@every_recipe
def test_batches_divide(name: str) -> None:
    config = load(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    batch, mini = config.data.train_batch_size, actor.ppo_mini_batch_size
    ranks = gpus(config)
    assert batch % mini == 0
    assert (mini * rollout.n) % ranks == 0, "a mini-batch is shared out evenly"
    assert (mini * rollout.n // ranks) % actor.ppo_micro_batch_size_per_gpu == 0
    assert ranks % rollout.tensor_model_parallel_size == 0
    assert config.trainer.n_gpus_per_node % rollout.tensor_model_parallel_size == 0
    assert rollout.n > 1, "GRPO compares the trajectories of a group"
    trainer = config.trainer
    assert trainer.total_training_steps % trainer.save_freq == 0
    assert trainer.test_freq < 0 or trainer.total_training_steps % trainer.test_freq == 0


@full_size
def test_memory_of_weights_and_optimizer(name: str) -> None:
    """What stays on an 80 GB card between updates leaves room for activations and logits."""
    config = load(name)
    billions = 33.5 if "32b" in config.actor_rollout_ref.model.path else 8.8
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    # fp32 weights and gradients, two fp32 moments.
    resident = 4 * (not fsdp.param_offload) + 4 + 8 * (not fsdp.optimizer_offload)
    assert resident * billions / gpus(config) < 12
    rollout = config.actor_rollout_ref.rollout
    weights = 2 * billions / rollout.tensor_model_parallel_size
    tokens = config.data.max_prompt_length + config.data.max_response_length
    bytes_per_token = 2 * 2 * 128 * (64 * 8 if billions > 30 else 36 * 8)
    cache = bytes_per_token * tokens / rollout.tensor_model_parallel_size / 1e9
    assert weights + 4 * cache < 80 * rollout.gpu_memory_utilization, "four whole trajectories"


def test_published_values_of_v2() -> None:
    config = load("rl")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, rollout.n) == (256, 32, 16)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (8192, 16384)
    assert (actor.optim.lr, actor.use_kl_loss, actor.entropy_coeff) == (1e-6, False, 0)
    assert (rollout.temperature, rollout.max_num_batched_tokens) == (1.0, 32768)
    assert config.deepeyes.turn_tokens == 8192
    assert settings_of(config).limits.turns == 9
    assert gpus(config) == 32 and gpus(load("rl_32b")) == 64


def test_published_values_of_v1() -> None:
    config = load("rl_v1")
    assert (config.data.max_response_length, config.deepeyes.turn_tokens) == (20480, 10240)
    assert config.trainer.total_training_steps == 80
    settings = settings_of(config)
    assert (settings.environment, settings.limits.turns) == ("visual_toolbox_v2", 5)


def test_the_single_node_recipe_overlaps_rollout_and_training() -> None:
    config = load("rl_single_node")
    assert gpus(config) == 8
    assert config.trainer.v1.trainer_mode == "colocate_async"
    assert config.algorithm.rollout_correction.rollout_is == "token"


def test_the_judge_answers_where_the_verdict_fits() -> None:
    judge = yaml.safe_load((RECIPES / "judge.yaml").read_text())
    assert judge["max-model-len"] >= 8192 + 4096
    assert {key for key in judge if "_" in key} == set()
