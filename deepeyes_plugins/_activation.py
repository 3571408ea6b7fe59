"""Import hook that registers with frameworks that have no plugin mechanism.

``deepeyes_plugins.pth`` calls :func:`install` when the interpreter starts, so that plain
``llamafactory-cli train`` and ``python -m vlmeval`` find this package's converters and models, in
child processes too. A finder waits for the framework's registry module; before that, neither the
framework nor the rest of this package is imported. Every Python process of the environment loads
this module, so it imports only what an interpreter has already loaded.

``DEEPEYES_ACTIVATION=0`` disables it; ``deepeyes doctor`` shows its state. A framework that gains
an entry point for plugins no longer needs its line in :data:`HOOKS`.
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
"""Environment variable; ``0`` disables :func:`install`."""

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
"""Registry module of a framework to the ``module:function`` that is called with it on import."""

state: dict[str, str] = {}
"""State of each watched module: ``waiting``, ``registered`` or ``failed: reason``."""

_functions: dict[str, str] = {}


class RegistryFinder:
    """A ``sys.meta_path`` finder that wraps the loaders which other finders return."""

    def __init__(self) -> None:
        self._searching: set[tuple[str, int]] = set()

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Return the other finders' spec of a watched module; else ``None``."""
        if name not in _functions:
            return None
        # Other finders may query all of sys.meta_path again, including this finder.
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
    """Watch the modules of :data:`HOOKS`, unless :data:`SWITCH` is ``0``."""
    if os.environ.get(SWITCH) != "0":
        for name, function in HOOKS.items():
            watch(name, function)


def watch(name: str, function: str) -> None:
    """Call a function with a framework's module as soon as the module is imported.

    Failures are logged and recorded in :data:`state`, but not raised. The function is called again
    each time the module is executed again (``importlib.reload``).

    Args:
        name: Full name of the module. If it is already imported, the function is called at once.
        function: ``module:function`` that takes the module; imported when it is called.

    Raises:
        ValueError: Another function is registered for the module.
    """
    if _functions.setdefault(name, function) != function:
        raise ValueError(f"{name} is already watched for {_functions[name]}, not for {function}")
    if name in state:
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    state[name] = "waiting"
    if name in sys.modules:
        _register(sys.modules[name])


def _mark(spec: "ModuleSpec") -> None:
    """Make the spec's loader call :func:`_register` after it has executed the module.

    Only a copy of the loader is changed, and only until it has run, so its type, source and
    resources stay available, and a loader shared with other modules is unaffected.
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
    """Record and log a failure; the framework continues without this package."""
    import logging

    state[name] = f"failed: {type(error).__name__}: {error}"
    logging.getLogger(__name__).warning(
        "deepeyes-plugins could not register in %s (%s: %s). Run `deepeyes doctor`, or set %s=0 "
        "to disable it.",
        name,
        type(error).__name__,
        error,
        SWITCH,
    )
