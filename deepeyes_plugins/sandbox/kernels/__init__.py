"""Kernels, which run the cells of sessions: the built-in ones, and how to load others."""

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
"""Built-in kernels: name to the ``module:factory`` of their provider."""


def make_provider(settings: SandboxSettings) -> KernelProvider:
    """Make the provider that ``settings.kernel`` names.

    Raises:
        SandboxUnavailable: There is no such kernel, or it cannot be imported.
    """
    reference = KERNELS.get(settings.kernel, settings.kernel)
    module, colon, attribute = reference.partition(":")
    if not colon:
        raise SandboxUnavailable(
            f"there is no kernel {settings.kernel!r}: known are {', '.join(KERNELS)}; use "
            "module:factory for a custom one"
        )
    try:
        factory: Callable[[SandboxSettings], KernelProvider]
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SandboxUnavailable(f"kernel {settings.kernel!r} cannot be used: {error}") from error
    return factory(settings)
