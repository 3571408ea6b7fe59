"""vLLM: what its general plugin changes on a CPU."""
