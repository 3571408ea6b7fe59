"""Text-search providers, one module each."""
