"""VLMEvalKit plugin: the model ``DeepEyesV2`` and its datasets (see ``register.py``)."""
