"""Two places of verl 0.9.1 that only work with an accelerator, adapted for the CPU."""

from __future__ import annotations

from functools import wraps
from typing import Any


def use_one_gloo_backend(module: Any) -> None:
    """Name one backend: verl builds ``cpu:gloo,cpu:gloo``, which torch refuses as a duplicate.

    Args:
        module: ``verl.utils.distributed``.
    """
    original = module.initialize_global_process_group_ray

    @wraps(original)
    def initialize(timeout_second: int | None = None, backend: str | None = None) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    module.initialize_global_process_group_ray = initialize


def never_pin_memory(module: Any) -> None:
    """Do not pin memory for the reference policy: pinning needs an accelerator.

    Args:
        module: ``verl.workers.engine.fsdp.transformer_impl``.
    """
    original = module.CPUOffloadPolicy

    def without_pinning(pin_memory: bool = True) -> Any:
        del pin_memory
        return original(pin_memory=False)

    module.CPUOffloadPolicy = without_pinning
