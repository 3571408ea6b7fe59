"""verl on machines without an accelerator: a platform and a rollout engine on transformers."""
