"""Train and evaluate "thinking with images" agents on unmodified upstream packages.

Importing this package costs milliseconds and does nothing else: no files, connections or threads.

A third-party plugin needs one name from here::

    from deepeyes_plugins import hookimpl

    @hookimpl
    def register_tools(register):
        register("my_tool", MyTool)
"""

# Every interpreter of the environment imports this module (see _activation.py); the module typing
# alone would cost it several milliseconds. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from deepeyes_plugins.plugins import hookimpl as hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]


def __getattr__(name: str) -> object:
    if name == "hookimpl":
        from deepeyes_plugins.plugins import hookimpl

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
