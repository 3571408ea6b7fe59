"""What benchmarks/search.py measures: one module per part, each with its figures."""
