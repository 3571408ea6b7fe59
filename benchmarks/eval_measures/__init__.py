"""What `benchmarks/eval.py` measures: one module each, named in MEASURES."""

from __future__ import annotations

MEASURES: dict[str, str] = {
    "activation": "eval_measures.activation:measure",
    "throughput": "eval_measures.running:throughput",
    "throughput_cheap_tool": "eval_measures.running:throughput_of_a_cheap_tool",
    "memory": "eval_measures.running:memory",
}
"""Name to `module:function`; the function takes whether to be quick. Imported when asked for."""
