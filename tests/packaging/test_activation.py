"""How a framework's registry module is watched, seen from a host that knows nothing of us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FRAMEWORK = """
executions = globals().get("executions", 0) + 1
REGISTRY = {}
"""
OURS = """
calls = []

def register(module):
    calls.append(module.__name__)
    module.REGISTRY["deepeyes"] = "ours"

def fail(module):
    raise KeyError("the registry was renamed")
"""
PRELUDE = """
import importlib, importlib.util, json, sys
from deepeyes_plugins._activation import state, watch

def show(**facts):
    print(json.dumps(facts))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a framework and with what we would register in it."""
    (tmp_path / "framework").mkdir()
    (tmp_path / "framework" / "__init__.py").touch()
    (tmp_path / "framework" / "registry.py").write_text(FRAMEWORK)
    (tmp_path / "ours.py").write_text(OURS)
    return tmp_path


def host(site: Path, program: str) -> tuple[dict[str, Any], str]:
    """Run a program that calls ``show(...)`` once; what it showed, and its standard error."""
    answer = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=site,
        check=True,
    )
    return json.loads(answer.stdout), answer.stderr


def test_nothing_of_ours_is_imported_before_the_framework_is(site: Path) -> None:
    shown, _ = host(
        site,
        """
watch("framework.registry", "ours:register")
import framework
before = "ours" in sys.modules, dict(state)["framework.registry"]
import framework.registry
show(before=before, after=state["framework.registry"], registry=framework.registry.REGISTRY)
""",
    )
    assert shown == {
        "before": [False, "waiting"],
        "after": "registered",
        "registry": {"deepeyes": "ours"},
    }


def test_a_framework_that_is_imported_already_is_served_at_once(site: Path) -> None:
    shown, _ = host(
        site,
        """
import framework.registry
watch("framework.registry", "ours:register")
show(registry=framework.registry.REGISTRY)
""",
    )
    assert shown["registry"] == {"deepeyes": "ours"}


def test_the_real_loader_stays_visible(site: Path) -> None:
    shown, _ = host(
        site,
        """
import inspect, pickle
watch("framework.registry", "ours:register")
import framework.registry as module
show(
    kinds=[type(module.__loader__).__name__, type(module.__spec__.loader).__name__],
    file=module.__file__.endswith("registry.py"),
    source="REGISTRY" in inspect.getsource(module),
    pickled=pickle.loads(pickle.dumps(module.__spec__)).name,
)
""",
    )
    assert shown == {
        "kinds": ["SourceFileLoader", "SourceFileLoader"],
        "file": True,
        "source": True,
        "pickled": "framework.registry",
    }


def test_looking_a_module_up_does_not_import_it(site: Path) -> None:
    shown, _ = host(
        site,
        """
watch("framework.registry", "ours:register")
spec = importlib.util.find_spec("framework.registry")
show(origin=spec.origin.endswith("registry.py"), kind=type(spec.loader).__name__,
     imported="framework.registry" in sys.modules, state=state["framework.registry"])
""",
    )
    assert shown == {
        "origin": True,
        "kind": "SourceFileLoader",
        "imported": False,
        "state": "waiting",
    }


def test_a_reload_registers_again(site: Path) -> None:
    shown, _ = host(
        site,
        """
watch("framework.registry", "ours:register")
import framework.registry as module
importlib.reload(module)
import ours
show(executions=module.executions, registry=module.REGISTRY, calls=len(ours.calls))
""",
    )
    assert shown == {"executions": 2, "registry": {"deepeyes": "ours"}, "calls": 2}


def test_a_failure_of_ours_is_logged_and_the_host_goes_on(site: Path) -> None:
    shown, complaint = host(
        site,
        """
watch("framework.registry", "ours:fail")
import framework.registry
show(imported=True, state=state["framework.registry"])
""",
    )
    assert shown == {
        "imported": True,
        "state": "failed: KeyError: 'the registry was renamed'",
    }
    assert "deepeyes-plugins could not register in framework.registry" in complaint
    assert "deepeyes doctor" in complaint


def test_a_failure_of_the_framework_stays_its_own(site: Path) -> None:
    (site / "framework" / "registry.py").write_text("raise OSError('no licence')")
    shown, _ = host(
        site,
        """
watch("framework.registry", "ours:register")
try:
    import framework.registry
except OSError as error:
    show(error=str(error), state=state["framework.registry"])
""",
    )
    assert shown == {"error": "no licence", "state": "waiting"}


def test_other_finders_may_search_for_the_module_too(site: Path) -> None:
    # Import hooks of tracing libraries ask all of sys.meta_path again, which includes ours.
    shown, _ = host(
        site,
        """
class Tracer:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if self.busy:
            return None
        self.busy = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.busy = False

watch("framework.registry", "ours:register")
sys.meta_path.insert(0, Tracer())
sys.meta_path.append(Tracer())
import framework.registry, ours
show(calls=ours.calls)
""",
    )
    assert shown == {"calls": ["framework.registry"]}


def test_threads_that_import_at_once_register_once(site: Path) -> None:
    shown, _ = host(
        site,
        """
from concurrent.futures import ThreadPoolExecutor
watch("framework.registry", "ours:register")
with ThreadPoolExecutor(16) as threads:
    names = ["framework.registry"] * 64
    found = [module.REGISTRY for module in threads.map(importlib.import_module, names)]
import ours
show(calls=ours.calls, complete=all("deepeyes" in registry for registry in found))
""",
    )
    assert shown == {"calls": ["framework.registry"], "complete": True}


def test_a_missing_framework_is_missing_as_ever(site: Path) -> None:
    shown, _ = host(
        site,
        """
watch("absent.registry", "ours:register")
try:
    import absent.registry
except ModuleNotFoundError as error:
    show(name=error.name, state=state["absent.registry"])
""",
    )
    assert shown == {"name": "absent", "state": "waiting"}


def test_two_functions_for_one_module_are_refused(site: Path) -> None:
    shown, _ = host(
        site,
        """
watch("framework.registry", "ours:register")
watch("framework.registry", "ours:register")
try:
    watch("framework.registry", "ours:fail")
except ValueError as error:
    show(error=str(error))
""",
    )
    assert "ours:register, not for ours:fail" in shown["error"]
