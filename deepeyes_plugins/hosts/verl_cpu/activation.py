"""Activate the CPU backend inside verl; does nothing where there is a CUDA device."""

from __future__ import annotations

import os

from deepeyes_plugins._activation import watch

ENGINE = "transformers"
"""Value of ``actor_rollout_ref.rollout.name``."""

PLATFORM = "cpu"


def activate() -> None:
    """Register the platform ``cpu``, the engine ``transformers`` and what they need.

    Two functions of verl assume an accelerator and are adapted at run time; both are upstream
    bugs in 0.9.1 (see :mod:`deepeyes_plugins.hosts.verl_cpu.patches`).
    """
    import torch

    registrations = "deepeyes_plugins.hosts.verl_cpu.registrations"
    watch("verl.workers.rollout.replica", f"{registrations}:register_replica")
    watch("verl.workers.rollout.base", f"{registrations}:register_rollout")
    if torch.cuda.is_available() or os.environ.get("VERL_PLATFORM", PLATFORM) != PLATFORM:
        return
    # verl registers its FSDP engines for named accelerators only; these variables are its own
    # way to say which entry to use.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    os.environ.setdefault("VERL_ENGINE_VENDOR", "nvidia")
    import deepeyes_plugins.hosts.verl_cpu.platform  # noqa: F401 - registers itself

    patches = "deepeyes_plugins.hosts.verl_cpu.patches"
    watch("verl.utils.distributed", f"{patches}:use_one_gloo_backend")
    watch("verl.workers.engine.fsdp.transformer_impl", f"{patches}:never_pin_memory")
