"""Parts of ``benchmarks/sandbox.py``: systems, measurements and report."""
