"""Text and image search: one contract, its providers, and what stands in front of them."""
