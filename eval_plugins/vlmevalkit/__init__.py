"""VLMEvalKit finds `DeepEyesV2` and `DeepEyesQuickstart` among its own models and datasets."""
