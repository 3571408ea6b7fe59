"""Put our names where VLMEvalKit looks them up.

VLMEvalKit imports this in every process that needs its registry, whatever model it runs: what an
evaluation with our model needs besides is imported when the model is made.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval_plugins.vlmevalkit.adapter import DeepEyesV2

MODEL = "DeepEyesV2"


def make_model(**keywords: Any) -> DeepEyesV2:
    """Make the model; its keywords are those of the class."""
    from eval_plugins.vlmevalkit.adapter import DeepEyesV2

    return DeepEyesV2(**keywords)


def register(config: ModuleType) -> None:
    """Register the model and the datasets; called when ``vlmeval.config`` has been imported.

    ``--model DeepEyesV2``, ``--data DeepEyesQuickstart FVQA-test InfoSeek MMSearch`` and, in a
    ``--config`` file, the classes of both then work like VLMEvalKit's own.

    Args:
        config: The module ``vlmeval.config``.

    Raises:
        RuntimeError: VLMEvalKit has something else of one of these names.
    """
    import vlmeval.api
    import vlmeval.dataset

    from eval_plugins.vlmevalkit.dataset import DeepEyesQuickstart, DeepEyesSearchQA

    _publish(vlmeval.api, MODEL, make_model)
    # VLMEvalKit hands --retry and --verbose only to models that have them as keywords here.
    entry = partial(make_model, retry=6, verbose=False)
    for group in (config.api_models, config.supported_VLM):
        group[MODEL] = entry

    for dataset in (DeepEyesQuickstart, DeepEyesSearchQA):
        _publish(vlmeval.dataset, dataset.__name__, dataset)
        for names, new in (
            (vlmeval.dataset.DATASET_CLASSES, [dataset]),
            (vlmeval.dataset.SUPPORTED_DATASETS, dataset.supported_datasets()),
        ):
            names.extend(name for name in new if name not in names)


def _publish(module: ModuleType, name: str, ours: object) -> None:
    existing = getattr(module, name, ours)
    if existing is not ours:
        raise RuntimeError(f"{module.__name__} already has a {name} of its own, {existing!r}")
    setattr(module, name, ours)
