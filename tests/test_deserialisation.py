"""Every place that reads data which can run code, and who writes that data.

Unpickling runs whatever the data says. A new place fails this test until it is listed here with the
writer of its data, who must be this process, its own children, or the owner of the machine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules whose readers run code."""
CALLS = {"eval", "exec", "torch.load", "pandas.read_pickle", "pd.read_pickle", "yaml.unsafe_load"}
METHODS = {"recv_pyobj", "read_pickle", "unsafe_load", "full_load"}

PLACES = {
    "deepeyes_plugins/sandbox/kernels/fork/state.py": (
        "Snapshots of a session's variables: written and read inside the session's own jail. The "
        "server stores the bytes and never reads them."
    ),
    "deepeyes_plugins/search/plain_pickle.py": (
        "Published search caches. An allow list of opcodes is checked first, and the unpickler "
        "resolves no names."
    ),
    "deepeyes_plugins/data/workers.py": (
        "Work for the processes that a command starts, over their standard input and output."
    ),
}


def dotted(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except ValueError:
        return ""


def readers(tree: ast.AST) -> Iterator[str]:
    """What in a module can run code from data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield str(node.module)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            allowed = {word.arg: dotted(word.value) for word in node.keywords}
            if (
                name in CALLS
                or name.rpartition(".")[2] in METHODS
                or (name == "yaml.load" and "Unique" not in dotted(node))
            ):
                yield name
            elif allowed.get("allow_pickle", "False") != "False":
                yield f"{name}(allow_pickle)"


def test_every_place_that_reads_data_which_can_run_code_is_listed() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(set(readers(ast.parse(path.read_text()))))
        for top in ("deepeyes_plugins", "eval_plugins")
        for path in (ROOT / top).rglob("*.py")
    }
    assert {path for path, reads in found.items() if reads} == set(PLACES)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "import torch\ntorch.load('a.pt')",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "socket.recv_pyobj()",
        "eval(text)",
    ],
)
def test_what_this_test_would_notice(source: str) -> None:
    assert list(readers(ast.parse(source)))
