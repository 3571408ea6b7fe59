"""Prelude that the ``jupyter`` kernel sends as source text to a Python kernel at its start.

It makes ipykernel's messages those of the other kernels. The environment may be old: this requires
only Python 3.8, IPython and ipykernel, and Pillow for sessions with images.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import traceback
import warnings
from typing import Any

NAMES_TYPE = "application/vnd.deepeyes.names+json"
"""MIME type of the message with the names of the variables after each cell."""


def prepare(shell: Any) -> None:
    """Configure the shell of this kernel for a session."""
    kernel = shell.kernel
    pack = kernel.session.pack
    publish = shell.display_pub.publish  # Bypasses a cell's own output capture.
    show = shell._showtraceback
    published: Any = None

    def pack_any(message: Any) -> Any:
        try:
            return pack(message)
        except UnicodeEncodeError:  # A lone surrogate: escape it.
            return json.dumps(message, default=str).encode("ascii")

    def no_input(*args: Any, **kwargs: Any) -> Any:
        raise EOFError("input() is not available: nobody is at the keyboard of this session")

    def no_exit() -> None:
        sys.stderr.write("exit() and quit() do nothing here: the session stays open.\n")

    def show_plain(kind: Any, error: Any, lines: Any) -> None:
        show(kind, error, [plain_traceback(error)])

    def publish_names(*args: Any) -> None:
        nonlocal published
        hidden, absent = shell.user_ns_hidden, object()
        names = [
            name
            for name, value in list(shell.user_ns.items())
            if not name.startswith("_") and hidden.get(name, absent) is not value
        ]
        if names != published:
            published = names
            publish({NAMES_TYPE: names})

    kernel.session.pack = pack_any
    kernel.raw_input = kernel.getpass = no_input
    shell.ask_exit = no_exit
    shell._showtraceback = show_plain
    shell.InteractiveTB.set_mode("Minimal")  # Its traceback is replaced.
    shell.compile.get_code_name = cell_name
    shell.deepeyes_image = lambda *args, **kwargs: attach(shell, *args, **kwargs)
    warnings.filterwarnings("ignore", message="To exit: use")
    shell.user_ns_hidden.update(shell.user_ns)
    shell.events.register("post_run_cell", publish_names)
    # ipykernel cancels an awaiting cell in a callback that its sleeping event loop would not
    # notice. Once the loop handles any signal, it wakes up for all of them.
    kernel.io_loop.asyncio_loop.add_signal_handler(signal.SIGURG, lambda: None)


def cell_name(raw_code: str, transformed_code: str, number: int) -> str:
    """Return the file name of a cell in tracebacks."""
    return f"<cell {number}>"


def attach(shell: Any, name: str, path: str = "", data: str = "") -> None:
    """Define an image as a variable, from a file or from base64 data."""
    from PIL import Image

    image = Image.open(path if path else io.BytesIO(base64.b64decode(data)))
    shell.push({name: image}, interactive=False)


def plain_traceback(error: BaseException) -> str:
    """Format a traceback without the frames of the kernel's own code."""
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(type(error), error))
    import ipykernel
    import IPython

    libraries = tuple(os.path.dirname(str(m.__file__)) for m in (IPython, ipykernel))
    summary = traceback.TracebackException.from_exception(error)
    parts = [summary]
    while parts:
        part: Any = parts.pop()
        if part is not None:
            shown = [
                frame
                for frame in part.stack
                if not frame.filename.startswith(libraries) and frame.filename != __file__
            ]
            part.stack = traceback.StackSummary.from_list(shown)
            parts += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(summary.format())
