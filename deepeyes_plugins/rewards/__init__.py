"""What a finished trajectory earns: format, accuracy, and the DeepEyes scores made of them."""
