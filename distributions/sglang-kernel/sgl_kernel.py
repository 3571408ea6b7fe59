"""Names of SGLang's kernels: every module and function can be imported, none can be called."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Missing(ModuleType):
    """A module that has every public name."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> "_Missing":
        return _missing(self.__name__, name)

    def __call__(self, *arguments: object, **options: object) -> None:
        raise NotImplementedError(f"{self.__name__} needs SGLang's real kernels")


class _Finder(MetaPathFinder, Loader):
    """Finds every module below ``sgl_kernel``."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        below = name.startswith(f"{__name__}.")
        return ModuleSpec(name, self, is_package=True) if below else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Missing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is complete."""


def _missing(module: str, name: str) -> _Missing:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(f"{module}.{name}")


def __getattr__(name: str) -> _Missing:
    return _missing(__name__, name)


sys.meta_path.append(_Finder())
__path__: list[str] = []
__version__ = "0.4.2.post2"
