"""CPU cost of the import hook in `import vlmeval`: median milliseconds.

Two imports of many seconds differ by more noise than the hook costs. So fresh interpreters import
`vlmeval` with the hook on, and count the thread time of what it does: the finder's searches and
the registration, with every module that it imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

from reporting.measures import Figure

PROGRAM = """
import gc, json, time
from deepeyes_plugins import _activation as hook
spent = [0.0]
def timed(function):
    def call(*arguments):
        started = time.thread_time()
        try:
            return function(*arguments)
        finally:
            spent[0] += time.thread_time() - started
    return call
hook._register = timed(hook._register)
find = hook.RegistryFinder.find_spec
watched = set(hook.HOOKS)
started = time.thread_time()
for _ in range(10_000):
    find(hook._finder, "nobody.watches.this")
search = (time.thread_time() - started) / 10_000
import sys
before = len(sys.modules)
gc.disable()
import vlmeval.config
print(json.dumps([spent[0] + search * (len(sys.modules) - before), hook.state["vlmeval.config"]]))
"""


def measure(quick: bool) -> Figure:
    """The median of some interpreters."""
    costs = []
    for _ in range(1 if quick else 5):
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "DEEPEYES_ACTIVATION": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, state = json.loads(answer.stdout.splitlines()[-1])
        if state != "registered":
            raise RuntimeError(f"the hook did not register: {state}")
        costs.append(1000 * seconds)
    return Figure(
        "activation on import vlmeval, CPU time (median of fresh interpreters)",
        median(costs),
        "ms",
        5,
        {f"interpreter {at + 1} [ms]": cost for at, cost in enumerate(costs)},
        at_most=True,
    )
