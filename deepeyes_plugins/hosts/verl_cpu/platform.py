"""verl's platform contract for a machine without an accelerator."""

from __future__ import annotations

import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class _DeviceModule(types.ModuleType):
    """What verl calls on ``torch.cuda``; everything else is ``torch.cpu``'s."""

    def is_available(self) -> bool:
        """No accelerator: verl's memory helpers become no-ops."""
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> str:
        return "cpu"

    def get_device_name(self, *_: Any) -> str:
        return "CPU"

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return 0, 0

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def _zero(self, *_: Any, **__: Any) -> int:
        return 0

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = _zero

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    empty_cache = synchronize = set_device = reset_peak_memory_stats = _nothing

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    """Device ``cpu``, collectives by gloo."""

    _module = _DeviceModule("deepeyes_cpu_device")

    @property
    def device_name(self) -> str:
        """The torch device type."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """The vendor; there is none to tell apart."""
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        """The stand-in for ``torch.cuda``."""
        return self._module

    def is_available(self) -> bool:
        """A CPU is always there."""
        return True

    def current_device(self) -> Any:
        """A device, not an index: verl hands it to ``tensor.to``."""
        return "cpu"

    def device_count(self) -> int:
        """One per process."""
        return 1

    def manual_seed(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def _nothing(self, *_: Any) -> None:
        """Do nothing: no devices to select or wait for, no allocator, profiler or CUDA runtime."""

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Unknown."""
        return None, None

    def communication_backend_name(self) -> str:
        """Collectives by gloo."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Ray sets it for the pretended resource; nothing reads it."""
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> AbstractContextManager[None]:
        """No ranges to mark."""
        return nullcontext()

    def ray_resource_name(self) -> str:
        """A pretended resource: verl's pool check knows GPU and NPU only."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """None needed."""
        return []

    def is_ipc_supported(self) -> bool:
        """No device memory to share."""
        return False
