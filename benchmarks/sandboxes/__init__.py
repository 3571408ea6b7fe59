"""Parts of `benchmarks/sandbox.py`: the systems, what is measured of them, and the report."""
