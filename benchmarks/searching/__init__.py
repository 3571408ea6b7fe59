"""The measures of benchmarks/search.py, in modules of their own.

A module registers what it measures; search.py imports it by its name in MODULES.
"""
