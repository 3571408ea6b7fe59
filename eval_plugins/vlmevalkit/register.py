"""Put our names where VLMEvalKit looks them up."""

from __future__ import annotations

from functools import partial
from types import ModuleType

MODEL = "DeepEyesV2"


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

    from eval_plugins.vlmevalkit.adapter import DeepEyesV2
    from eval_plugins.vlmevalkit.dataset import DeepEyesQuickstart, DeepEyesSearchQA

    _publish(vlmeval.api, DeepEyesV2)
    # VLMEvalKit hands --retry and --verbose only to models that have them as keywords here.
    entry = partial(DeepEyesV2, retry=3, verbose=False)
    for group in (config.api_models, config.supported_VLM):
        group[MODEL] = entry

    for dataset in (DeepEyesQuickstart, DeepEyesSearchQA):
        _publish(vlmeval.dataset, dataset)
        for names, new in (
            (vlmeval.dataset.DATASET_CLASSES, [dataset]),
            (vlmeval.dataset.SUPPORTED_DATASETS, dataset.supported_datasets()),
        ):
            names.extend(name for name in new if name not in names)


def _publish(module: ModuleType, class_: type) -> None:
    existing = getattr(module, class_.__name__, class_)
    if existing is not class_:
        raise RuntimeError(
            f"{module.__name__} already has a {class_.__name__} of its own, {existing!r}"
        )
    setattr(module, class_.__name__, class_)
