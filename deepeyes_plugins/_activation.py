"""Registers with frameworks that have no plugin mechanism, once they are imported.

``deepeyes_plugins.pth`` calls :func:`install` when the interpreter starts, so that plain
``llamafactory-cli train`` and ``python -m vlmeval`` find our converters and models, in child
processes too. A finder waits for the framework's registry module; nothing of the framework or of
ours is imported before. Every Python process of the environment pays for this module, so it uses
only what an interpreter has loaded anyway.

``DEEPEYES_ACTIVATION=0`` switches it off; ``deepeyes doctor`` shows what it did. The day a
framework grows an entry point of its own, its line in :data:`HOOKS` goes.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SWITCH = "DEEPEYES_ACTIVATION"
"""Environment variable; with ``0``, :func:`install` does nothing."""

HOOKS = {
    "llamafactory.data.converter": (
        "deepeyes_plugins.hosts.llamafactory.register:register_converters"
    ),
    "llamafactory.data.template": (
        "deepeyes_plugins.hosts.llamafactory.register:register_templates"
    ),
    "llamafactory.data.loader": (
        "deepeyes_plugins.hosts.llamafactory.register:register_processors"
    ),
    "vlmeval.smp.file": "eval_plugins.vlmevalkit.tables:keep_texts",
    "vlmeval.config": "eval_plugins.vlmevalkit.register:register",
}
"""Registry module of a framework, and ``module:function`` to call with it once it is imported."""

state: dict[str, str] = {}
"""What became of each watched module: ``waiting``, ``registered`` or ``failed: reason``."""

_functions: dict[str, str] = {}


class RegistryFinder:
    """A ``sys.meta_path`` finder that finds nothing itself: it marks what the others find."""

    def __init__(self) -> None:
        """Make a finder; :func:`watch` puts it in place."""
        self._searching: set[tuple[str, int]] = set()

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Return the spec that the other finders have for a watched module; else ``None``."""
        if name not in _functions:
            return None
        # Other finders may ask all of sys.meta_path again, which comes back here.
        search = (name, get_ident())
        if search in self._searching:
            return None
        self._searching.add(search)
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find(name, path, target) if find else None
                if spec is not None:
                    _mark(spec)
                    return spec
            return None
        finally:
            self._searching.discard(search)


_finder = RegistryFinder()


def install() -> None:
    """Watch the modules of :data:`HOOKS`, unless :data:`SWITCH` says not to."""
    if os.environ.get(SWITCH) != "0":
        for name, function in HOOKS.items():
            watch(name, function)


def watch(name: str, function: str) -> None:
    """Call a function of ours with a framework's module as soon as that has been imported.

    A failure is logged and recorded in :data:`state`; the framework never sees it. Each time the
    module is executed anew (``importlib.reload``) the function is called again.

    Args:
        name: Full name of the module; one that is imported already is served at once.
        function: ``module:function`` that takes the module; imported only then.

    Raises:
        ValueError: Another function is called for that module already.
    """
    if _functions.setdefault(name, function) != function:
        raise ValueError(f"{name} is watched for {_functions[name]} already, not for {function}")
    if name in state:
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    state[name] = "waiting"
    if name in sys.modules:
        _register(sys.modules[name])


def _mark(spec: "ModuleSpec") -> None:
    """Make the spec's loader call :func:`_register` behind the module's execution.

    A copy of the real loader is changed, and only until it has run: its type, its source and its
    resources stay visible to everybody, and a loader that serves other modules is not touched.
    """
    from copy import copy

    try:
        loader: Loader = copy(spec.loader)  # type: ignore[assignment]
        execute = loader.exec_module

        def execute_and_register(module: "ModuleType") -> None:
            del loader.exec_module
            execute(module)
            _register(module)

        loader.exec_module = execute_and_register  # type: ignore[method-assign]
        spec.loader = loader
    except Exception as error:
        _fail(spec.name, error)


def _register(module: "ModuleType") -> None:
    from importlib import import_module

    name = module.__name__
    home, _, function = _functions[name].partition(":")
    try:
        getattr(import_module(home), function)(module)
    except Exception as error:
        _fail(name, error)
    else:
        state[name] = "registered"


def _fail(name: str, error: Exception) -> None:
    """Record a failure: the host goes on without us, but not silently."""
    import logging

    state[name] = f"failed: {type(error).__name__}: {error}"
    logging.getLogger(__name__).warning(
        "deepeyes-plugins could not register in %s (%s: %s). Run `deepeyes doctor`, or set %s=0 "
        "to go without.",
        name,
        type(error).__name__,
        error,
        SWITCH,
    )
