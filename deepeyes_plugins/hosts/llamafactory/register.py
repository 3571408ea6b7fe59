"""Make dataset formatters known to LLaMA-Factory; called once its converter module is imported."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from deepeyes_plugins import plugins
from deepeyes_plugins.hosts.llamafactory.converter import make_converter


def register_converters(module: ModuleType) -> None:
    """Register every formatter of ours and of third parties as a dataset converter.

    Calling it again changes nothing.

    Args:
        module: ``llamafactory.data.converter``.

    Raises:
        PluginError: A formatter has the name of a converter of LLaMA-Factory's own. The others
            are registered nevertheless.
    """
    formatters = plugins.formatters()
    taken = []
    for name in formatters:
        present = module.DATASET_CONVERTERS.get(name)
        if present is None:
            module.register_dataset_converter(name, partial(make_converter, name))
        elif getattr(present, "func", None) is not make_converter:
            taken.append(f"{name!r} of {formatters.owner(name)}")
    if taken:
        raise plugins.PluginError(
            "LLaMA-Factory has dataset converters of its own by the name of these formatters: "
            f"{', '.join(taken)}. Rename the formatters."
        )
