"""What runs the cells: one contract, the kernels that ship, and the suite for all of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Final

from deepeyes_plugins.sandbox.contracts import SandboxUnavailable

if TYPE_CHECKING:
    from deepeyes_plugins.sandbox.kernels.contract import KernelProvider
    from deepeyes_plugins.sandbox.settings import SandboxSettings

KERNELS: Final = {
    "fork": f"{__name__}.fork.provider:ForkProvider",
    "jupyter": f"{__name__}.jupyter:JupyterProvider",
}
"""The kernels that ship, by name: where to find what makes their provider of the settings."""


def make_provider(settings: SandboxSettings) -> KernelProvider:
    """Make the provider that ``settings.kernel`` names.

    Raises:
        SandboxUnavailable: There is no such kernel, or it cannot be imported.
    """
    place = KERNELS.get(settings.kernel, settings.kernel)
    module, colon, attribute = place.partition(":")
    if not colon:
        raise SandboxUnavailable(
            f"there is no kernel {settings.kernel!r}: known are {', '.join(KERNELS)}; another one "
            "is named as module:factory"
        )
    try:
        factory: Callable[[SandboxSettings], KernelProvider]
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SandboxUnavailable(f"kernel {settings.kernel!r} cannot be used: {error}") from error
    return factory(settings)
