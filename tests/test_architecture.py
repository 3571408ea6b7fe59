"""The rooms of the house and the arrows between them, as they really are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {
    "accelerate",
    "datasets",
    "llamafactory",
    "peft",
    "ray",
    "sglang",
    "tensordict",
    "torch",
    "torchvision",
    "transfer_queue",
    "transformers",
    "verl",
    "vlmeval",
    "vllm",
}

# What each room may import of ours; one that is missing here is not allowed to exist.
ALLOWED = {
    "protocol": set(),
    # How images look to a person; the language of the model is none of its business.
    "sandbox": {"protocol"},
    "search": {"hookspecs", "plugins", "protocol", "remote", "sqlite_file"},
    "remote": set(),
    "sqlite_file": set(),
    "rollout": {"protocol"},
    "judge": {"protocol", "remote", "rollout", "sqlite_file"},
    # Of the rewards only their model, which imports nothing of ours: see rewards/settings.py.
    "settings": {"judge", "protocol", "remote", "rewards", "rollout", "sandbox", "search"},
    "plugins": {"hookspecs", "data", "rewards", "search", "tools"},
    "hookspecs": {"data", "rewards", "search", "tools"},
    "tools": {"hookspecs", "protocol", "remote", "rollout", "sandbox", "search", "settings"},
    "environments": {"hookspecs", "plugins", "protocol", "rollout", "settings", "tools"},
    "jobs": {"rollout"},
    "rewards": {"hookspecs", "jobs", "judge", "plugins", "protocol", "rollout", "settings"},
    "data": {"hookspecs", "plugins", "protocol", "rollout", "search", "settings"},
    "_activation": set(),
}
EVERYTHING_BELOW = {*ALLOWED, ""}
ALLOWED |= {
    # The quickstart's task and the tiny model that is made for it know each other.
    # Plays with hosts/openai, judges, and writes data: above data, rewards and environments.
    "selection": EVERYTHING_BELOW | {"hosts"},
    "hosts": EVERYTHING_BELOW | {"quickstart"},
    "quickstart": EVERYTHING_BELOW | {"hosts"},
    "cli": EVERYTHING_BELOW | {"hosts", "quickstart", "selection", "eval_plugins"},
    "eval_plugins": EVERYTHING_BELOW | {"hosts", "quickstart"},
    "": {"hookspecs"},
}


def room(module: str) -> str:
    """``deepeyes_plugins.tools.python`` is in ``tools``; the package itself is the room ''."""
    top, *rest = module.split(".")
    return top if top == "eval_plugins" else (rest[0] if rest else "")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(tree: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    """All nodes; without those under ``if TYPE_CHECKING`` unless they are asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        yield node
        yield from nodes(node, for_types=for_types)


def imports(path: Path, *, for_types: bool = True) -> Iterator[str]:
    """Every module that a file imports, at its top or in a function."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), for_types=for_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, node.module or ""] if node.level else [node.module or ""])
            yield from (f"{base.rstrip('.')}.{alias.name}" for alias in node.names)


OPENAI = "deepeyes_plugins.hosts.openai"

SOURCES = sorted(
    path for top in ("deepeyes_plugins", "eval_plugins") for path in (ROOT / top).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = room(module_name(path))
    assert here in ALLOWED, f"a new room: say in this test what {here!r} may import"
    used = {
        room(name)
        for name in imports(path)
        if name.partition(".")[0] in ("deepeyes_plugins", "eval_plugins")
        and name != "deepeyes_plugins.__version__"
    }
    upward = used - ALLOWED[here] - {here}
    assert not upward, f"{path.relative_to(ROOT)} imports from {upward}"


def test_modules_do_not_import_each_other_in_circles() -> None:
    modules = {module_name(path) for path in SOURCES} - {"deepeyes_plugins", "eval_plugins"}
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        named = set(imports(path, for_types=False))
        # `from package import name` may name a module or something in it.
        used = named | {name.rpartition(".")[0] for name in named}
        graph[module_name(path)] = (used & modules) - {module_name(path)}
    # A package that offers the names of its modules is not a circle.
    packages = {module_name(path) for path in SOURCES if path.name == "__init__.py"}
    leaves = {module: graph[module] - packages for module in modules - packages}
    try:
        TopologicalSorter(leaves).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_hosts_and_eval_plugins_import_frameworks(path: Path) -> None:
    if room(module_name(path)) in ("hosts", "eval_plugins"):
        return
    found = {name.partition(".")[0] for name in imports(path)} & FRAMEWORKS
    assert not found, f"{path.relative_to(ROOT)} imports {found}"


@cache
def declared(*extras: str) -> set[str]:
    """Names of the packages that pyproject.toml asks for, with those of some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    names = {canonicalize_name(Requirement(line).name) for line in lines}
    return names | {canonicalize_name("pydantic-core")}  # A part of pydantic.


@cache
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_declared(path: Path) -> None:
    name = module_name(path)
    if room(name) in ("hosts", "eval_plugins") and not name.startswith(OPENAI):
        return  # Those bring their framework, and with it what that depends on.
    extras = {"rewards": ["math"], "sandbox": ["sandbox"], "search": ["search"]}
    allowed = declared(*extras.get(room(name), []))
    if room(name) == "quickstart":
        allowed = declared("sandbox", "sft", "rl", "eval")
    owners = _owners()
    for top in {imported.partition(".")[0] for imported in imports(path)}:
        if top in sys.stdlib_module_names or top in ("deepeyes_plugins", "eval_plugins"):
            continue
        found = {canonicalize_name(owner) for owner in owners.get(top, [])}
        assert found & allowed, f"{path.relative_to(ROOT)} imports {top}, which nobody installs"


def interpreter(program: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return answer.stdout


def test_importing_the_package_loads_nothing_else() -> None:
    # -S: without site, and so without what .pth files load.
    program = (
        "import sys; before = set(sys.modules); import deepeyes_plugins; "
        "print(*sorted(set(sys.modules) - before))"
    )
    answer = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout.split() == ["deepeyes_plugins"]


def test_the_marker_for_plugins_loads_pluggy_and_the_standard_library_only() -> None:
    program = """
import sys
from deepeyes_plugins import hookimpl
tops = {name.partition(".")[0] for name in sys.modules}
print(*sorted(tops - sys.stdlib_module_names - {"__main__", "_distutils_hack", "sitecustomize"}))
"""
    assert interpreter(program).split() == ["deepeyes_plugins", "pluggy"]


CORE = (
    "protocol",
    "rollout",
    "tools",
    "environments",
    "rewards",
    "data",
    "sandbox",
    "remote",
    "judge",
    "search",
)


def test_importing_the_core_touches_no_files_connections_or_threads() -> None:
    modules = [
        module_name(path)
        for path in SOURCES
        if room(module_name(path)) in CORE
        # Programs that are only ever started, never imported.
        and path.name not in ("__main__.py", "zygote.py", "provider.py")
    ]
    program = f"""
import importlib, json, os, sys, threading
importlib.import_module("PIL.Image")  # The libraries are not what is looked at here.
importlib.import_module("filelock.asyncio")
importlib.import_module("pydantic_settings")
importlib.import_module("aiohttp")
importlib.import_module("httpx")
importlib.import_module("matplotlib.pyplot")
events = []
READING = os.O_RDONLY | os.O_CLOEXEC
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        # Reading Python's own files is importing; a listing of a folder is, too.
        if str(path).endswith((".py", ".pyc", ".so")) or os.path.isdir(path):
            return
        if str(path).endswith("METADATA") or str(path).endswith("entry_points.txt"):
            return
        if not flags & ~READING and not str(path).startswith({str(ROOT)!r}):
            return
        events.append(f"open {{path}}")
    elif event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork"):
        events.append(f"{{event}} {{arguments}}")
sys.addaudithook(watch)
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps([events, threading.active_count()]))
"""
    events, threads = json.loads(interpreter(program))
    assert events == []
    assert threads == 1
