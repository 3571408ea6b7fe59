"""Make what is ours known to LLaMA-Factory; called once its registry modules are imported.

Calling a function again changes nothing. Each imports what it registers itself: that imports
modules of LLaMA-Factory's which need not be complete when another registry is.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.plugins import PluginError


def register_converters(module: ModuleType) -> None:
    """Register every formatter of ours and of third parties as a dataset converter.

    Args:
        module: ``llamafactory.data.converter``.

    Raises:
        PluginError: A formatter has the name of a converter of LLaMA-Factory's own. The others
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
            "LLaMA-Factory has dataset converters of its own by the name of these formatters: "
            f"{', '.join(taken)}. Rename the formatters."
        )


def register_templates(module: ModuleType) -> None:
    """Register our templates and the multimodal plugins that they name.

    Args:
        module: ``llamafactory.data.template``.
    """
    from deepeyes_plugins.hosts.llamafactory import pixels, template

    pixels.register()
    template.register(module.TEMPLATES)


def register_processors(module: ModuleType) -> None:
    """Let data sets be read as our formatters need it, and long samples be cut between turns.

    Args:
        module: ``llamafactory.data.loader``.
    """
    # Our template is made of LLaMA-Factory's, which registers ours: it has to come first.
    import llamafactory.data.template  # noqa: F401

    from deepeyes_plugins.hosts.llamafactory import loading, processors

    processors.register(module)
    loading.register(module)
