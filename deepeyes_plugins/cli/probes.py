"""Asks a framework, in a process of its own, whether our plugins are really registered in it.

``python -m deepeyes_plugins.cli.probes verl`` imports verl as a training job would and prints one
line, :data:`MARK` and a JSON list of :class:`Registration` fields, among whatever verl prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module

from deepeyes_plugins import _activation

MARK = "deepeyes-probe:"


@dataclass(frozen=True, slots=True)
class Registration:
    """Whether one thing of ours is known to a framework.

    Attributes:
        what: For instance ``agent loop 'deepeyes'``.
        registered: The framework finds it.
        reason: Why it does not, as far as that is known.
    """

    what: str
    registered: bool
    reason: str = ""


def llamafactory() -> list[Registration]:
    """The dataset converter, templates and tokenization of LLaMA-Factory."""
    converter = import_module("llamafactory.data.converter")
    template = import_module("llamafactory.data.template")
    loader = import_module("llamafactory.data.loader")
    processor = loader.SupervisedDatasetProcessor
    return [
        Registration(
            "dataset converter 'deepeyes'",
            "deepeyes" in converter.DATASET_CONVERTERS,
            _outcome(converter.__name__),
        ),
        *(
            Registration(
                f"template {name!r}", name in template.TEMPLATES, _outcome(template.__name__)
            )
            for name in ("deepeyes_qwen2_vl", "deepeyes_qwen3_vl")
        ),
        Registration(
            "tokenization between turns",
            processor.__module__.startswith("deepeyes_plugins."),
            _outcome(loader.__name__),
        ),
    ]


def vlmeval() -> list[Registration]:
    """The model of VLMEvalKit, and the reading and writing of its tables."""
    config, file = import_module("vlmeval.config"), import_module("vlmeval.smp.file")
    return [
        Registration(
            "model 'DeepEyesV2'", "DeepEyesV2" in config.supported_VLM, _outcome(config.__name__)
        ),
        Registration(
            "texts of predictions", hasattr(file.load, "__wrapped__"), _outcome(file.__name__)
        ),
    ]


def verl() -> list[Registration]:
    """What we add to verl and, without a GPU, the platform and engine that replace it."""
    loops = import_module("verl.experimental.agent_loop.agent_loop")
    replicas = import_module("verl.workers.rollout.replica")
    algorithms = import_module("verl.trainer.ppo.core_algos")
    trainers = import_module("verl.trainer.ppo.v1")
    known = {
        "agent loop 'deepeyes'": "deepeyes" in loops._agent_loop_registry,
        "advantage estimator 'deepeyes_grpo'": "deepeyes_grpo" in algorithms.ADV_ESTIMATOR_REGISTRY,
        "figures and early end of trainers": _activation.state.get(trainers.__name__)
        == "registered",
    }
    if not import_module("torch").cuda.is_available():
        platforms = import_module("verl.plugin.platform").PlatformRegistry
        engines = replicas.RolloutReplicaRegistry._registry
        known["platform 'cpu'"] = "cpu" in platforms.registered_names()
        known["rollout engine 'transformers'"] = "transformers" in engines
    reason = _why_verl_did_not_load_us()
    if not reason:
        outcomes = (_outcome(module.__name__) for module in (loops, replicas, algorithms, trainers))
        reason = "; ".join(outcome for outcome in outcomes if outcome != "registered")
    return [Registration(what, registered, reason) for what, registered in known.items()]


def _why_verl_did_not_load_us() -> str:
    """The reason, which verl itself hides; empty if it did."""
    plugin = "deepeyes_plugins.hosts.verl.plugin"
    if plugin in sys.modules:
        return ""
    try:
        import_module(plugin)
    except Exception as error:
        return f"{plugin}: {type(error).__name__}: {error}"
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    return f"verl did not load the entry point {plugin} (VERL_USE_EXTERNAL_PLUGINS={policy})"


def vllm() -> list[Registration]:
    """The general plugin of vLLM."""
    plugins = import_module("vllm.plugins")
    allowed = os.environ.get("VLLM_PLUGINS")
    return [
        Registration(
            "general plugin 'deepeyes'",
            "deepeyes" in plugins.load_plugins_by_group(plugins.DEFAULT_PLUGINS_GROUP),
            "its entry point is not installed" if allowed is None else f"VLLM_PLUGINS={allowed}",
        )
    ]


def torch() -> list[Registration]:
    """Whether PyTorch can use the GPU."""
    library = import_module("torch")
    return [
        Registration(
            "CUDA in PyTorch",
            library.cuda.is_available(),
            f"torch {library.__version__} was built for CUDA {library.version.cuda}",
        )
    ]


PROBES: dict[str, Callable[[], list[Registration]]] = {
    probe.__name__: probe for probe in (llamafactory, torch, verl, vllm, vlmeval)
}


def _outcome(module: str) -> str:
    return _activation.state.get(
        module,
        f"switched off by {_activation.SWITCH}=0, or deepeyes_plugins.pth is not installed",
    )


if __name__ == "__main__":
    registrations = [asdict(registration) for registration in PROBES[sys.argv[1]]()]
    sys.stdout.write(f"\n{MARK}{json.dumps(registrations)}\n")
