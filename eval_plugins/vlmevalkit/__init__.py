"""VLMEvalKit finds our model and datasets among its own (see ``register.py``)."""
