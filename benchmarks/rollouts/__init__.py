"""What benchmarks/rollout.py measures, a module each."""
