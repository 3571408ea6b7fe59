"""What the quickstart needs from transformers and PyTorch: the tiny model and the leakage probe."""
