"""Registration of the model and datasets with VLMEvalKit.

Runs in every process that imports VLMEvalKit's registry, whatever model it evaluates, so the agent
is imported only when the model is created.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval_plugins.vlmevalkit.adapter import DeepEyesV2

MODEL = "DeepEyesV2"


def make_model(**keywords: Any) -> DeepEyesV2:
    """Create the model; the keywords are those of the class."""
    from eval_plugins.vlmevalkit.adapter import DeepEyesV2

    return DeepEyesV2(**keywords)


def register(config: ModuleType) -> None:
    """Register the model and the datasets; called once ``vlmeval.config`` is imported.

    Afterwards ``--model DeepEyesV2``, ``--data DeepEyesQuickstart FVQA-test InfoSeek MMSearch`` and
    both classes in a ``--config`` file work like VLMEvalKit's own.

    Args:
        config: The module ``vlmeval.config``.

    Raises:
        RuntimeError: VLMEvalKit already uses one of these names.
    """
    import vlmeval.api
    import vlmeval.dataset

    from eval_plugins.vlmevalkit.dataset import DeepEyesQuickstart, DeepEyesSearchQA

    _publish(vlmeval.api, MODEL, make_model)
    # VLMEvalKit passes --retry and --verbose only to models that declare these keywords.
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


def _publish(module: ModuleType, name: str, value: object) -> None:
    existing = getattr(module, name, value)
    if existing is not value:
        raise RuntimeError(f"{module.__name__} already has another {name}: {existing!r}")
    setattr(module, name, value)
