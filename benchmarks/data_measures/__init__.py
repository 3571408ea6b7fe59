"""What `benchmarks/data.py` measures: one module each, named in MEASURES."""

from __future__ import annotations

MEASURES: dict[str, str] = {
    "check": "data_measures.check:measure",
    "formatter": "data_measures.formatter:measure",
    "synthesize": "data_measures.sampling:synthesize",
    "filter": "data_measures.sampling:filter_questions",
}
"""Name to `module:function`; the function takes whether to be quick. Imported when asked for."""
