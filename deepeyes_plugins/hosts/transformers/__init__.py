"""What is known of transformers and PyTorch: image sizes; the tiny model and the leakage probe."""
