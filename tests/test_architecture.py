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

# The rooms in the order of docs/architecture: each may import those before it, and no other.
ROOMS = (
    "_activation",
    "plugins",
    "",  # The package itself, which offers `hookimpl` and `__version__`.
    "printable",
    "errors",
    "renamed",
    "extras",
    "files",
    "checkpoints",
    "sqlite_file",
    "protocol",
    "rollout",
    "jobs",
    "remote",
    "serving",
    "sandbox",
    "search",
    "judge",
    "rewards",
    "settings",
    "tools",
    "environments",
    "data",
    "selection",
    "testing",
    "quickstart",
    "hosts",
    "eval_plugins",
    "cli",
)
# Rooms that import an upstream framework; the quickstart makes its tiny models with transformers.
FRAMEWORK_ROOMS = ("quickstart", "hosts", "eval_plugins")


def room(module: str) -> str:
    """``deepeyes_plugins.tools.python`` is in ``tools``; the package itself is the room ''."""
    top, *rest = module.split(".")
    return top if top == "eval_plugins" else (rest[0] if rest else "")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports: at its top, in a function, or for types only."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def ours(path: Path) -> Iterator[str]:
    """What a file imports of our own packages, each name as a module or something in one."""
    for name in imports(path):
        if name.partition(".")[0] in ("deepeyes_plugins", "eval_plugins"):
            yield name


MODULES = {module_name(path) for path in SOURCES}


def imported_room(name: str) -> str:
    """The room of an imported name; `deepeyes_plugins.__version__` is of the package itself."""
    found = room(name)
    top = name.split(".")[0]
    return found if f"{top}.{found}" in MODULES or top == "eval_plugins" else ""


def test_every_room_has_its_place() -> None:
    assert {room(module_name(path)) for path in SOURCES} == set(ROOMS)


def test_imports_point_up_the_list_of_rooms() -> None:
    upward = sorted(
        f"{module_name(path)} imports {name}"
        for path in SOURCES
        for name in ours(path)
        if ROOMS.index(imported_room(name)) > ROOMS.index(room(module_name(path)))
    )
    assert not upward


def test_modules_do_not_import_each_other_in_circles() -> None:
    packages = {module_name(path) for path in SOURCES if path.name == "__init__.py"}
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        # `from package import name` may name a module or something in it.
        used = {name if name in MODULES else name.rpartition(".")[0] for name in ours(path)}
        # A package that offers the names of its own modules is not a circle.
        graph[module_name(path)] = (used & MODULES) - packages - {module_name(path)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_frameworks_are_imported_by_their_rooms_only() -> None:
    strays = sorted(
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if room(module_name(path)) not in FRAMEWORK_ROOMS
        for name in imports(path)
        if name.partition(".")[0] in FRAMEWORKS
    )
    assert not strays


def loaded_rooms(program: str) -> set[str]:
    """The rooms of which a program imports more than names, settings and contracts."""
    found = interpreter(
        f"import sys; {program}; "
        "print(*(name for name in sys.modules if name.startswith(('deepeyes_', 'eval_'))))"
    ).split()
    shells = {".hooks", ".builtin", ".settings", ".contracts"}
    return {
        room(name)
        for name in found
        if name.count(".") > 1 and not any(name.endswith(shell) for shell in shells)
    } | ({"eval_plugins"} if "eval_plugins" in found else set())


def test_checking_data_imports_no_sandbox_no_search_and_no_judge(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    program = f"""
from typer.testing import CliRunner
from deepeyes_plugins.cli.main import app
answer = CliRunner().invoke(app, ["data", "check", {str(tmp_path / "rows.json")!r}])
assert "rows" in answer.output, answer.output
"""
    rooms = loaded_rooms(f"exec({program!r})")
    assert not rooms & {"sandbox", "search", "judge", "tools", "hosts", "selection"}, rooms


def test_the_sandbox_server_imports_its_own_room() -> None:
    rooms = loaded_rooms("import deepeyes_plugins.sandbox.serve, deepeyes_plugins.sandbox.server")
    assert rooms <= {"sandbox", "remote", "serving"}, rooms


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
    if room(name) in FRAMEWORK_ROOMS and not name.startswith(OPENAI):
        return  # Those bring their framework, and with it what that depends on.
    extras = {
        "rewards": ["math"],
        "sandbox": ["sandbox"],
        "search": ["search"],
        "serving": ["sandbox", "search"],
        "testing": ["sandbox", "search"],
    }
    allowed = declared(*extras.get(room(name), []))
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
