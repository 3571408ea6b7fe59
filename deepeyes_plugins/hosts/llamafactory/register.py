"""Registration with LLaMA-Factory; called once its registry modules are imported.

The functions are idempotent. Each imports only what it registers, because other modules of
LLaMA-Factory may not be fully imported yet.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.plugins import PluginError


def register_converters(module: ModuleType) -> None:
    """Register every formatter, including those of plugins, as a dataset converter.

    Args:
        module: ``llamafactory.data.converter``.

    Raises:
        PluginError: A formatter has the name of one of LLaMA-Factory's own converters. The others
            are registered nevertheless.
    """
    from deepeyes_plugins.hosts.llamafactory.converter import make_converter

    taken = []
    for name in formatters():
        present = module.DATASET_CONVERTERS.get(name)
        if present is None:
            module.register_dataset_converter(name, partial(make_converter, name))
        elif getattr(present, "func", None) is not make_converter:
            taken.append(f"{name!r} of {formatters().owner(name)}")
    if taken:
        raise PluginError(
            "LLaMA-Factory already has dataset converters with the names of these formatters: "
            f"{', '.join(taken)}. Rename the formatters."
        )


def register_templates(module: ModuleType) -> None:
    """Register the DeepEyes templates and their multimodal plugins.

    Args:
        module: ``llamafactory.data.template``.
    """
    from deepeyes_plugins.hosts.llamafactory import pixels, template

    pixels.register()
    template.register(module.TEMPLATES)


def register_processors(module: ModuleType) -> None:
    """Replace the dataset loader and the sample processors.

    Args:
        module: ``llamafactory.data.loader``.
    """
    # The DeepEyes template subclasses upstream's, whose import registers it: import that first.
    import llamafactory.data.template  # noqa: F401

    from deepeyes_plugins.hosts.llamafactory import loading, processors

    processors.register(module)
    loading.register(module)
