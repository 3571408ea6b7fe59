"""IPython shell of a forked session, with captured and limited output."""

from __future__ import annotations

import base64
import builtins
import getpass
import io
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import IPython
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from PIL import Image, ImageShow
from traitlets import Type
from traitlets.config import Config

from deepeyes_plugins.sandbox.kernels.fork.images import ImageRefused, as_png, encode_png
from deepeyes_plugins.sandbox.kernels.fork.memory import memfd
from deepeyes_plugins.sandbox.kernels.fork.state import SessionState, printable, reported
from deepeyes_plugins.sandbox.kernels.output import BoundedImages, BoundedText, OutputLimits

# Placeholder for an image that is not encoded since the cell has reached its image limit.
_CUT = b""
# Backends of `%matplotlib` that need no screen.
_OFF_SCREEN = frozenset({"inline", "agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})
_NO_SCREEN = "There is no screen here: {}\n"
_HIDDEN_FOLDERS = (str(Path(IPython.__file__).parent), str(Path(__file__).parents[1]))


class CellOutput:
    """Output of the running cell."""

    def __init__(self, limits: OutputLimits) -> None:
        self.limits = limits
        self.stdout = BoundedText(limits.stdout_characters)
        self.stderr = BoundedText(limits.stderr_characters)
        self.clear()

    def clear(self) -> None:
        """Clear result, images and error; text written between two cells is preserved."""
        self.result = ""
        self.images = BoundedImages(self.limits.images)
        self.error_name: str | None = None

    def show(self, data: dict[str, Any]) -> bool:
        """Add the image of a MIME bundle; return whether it has one."""
        encoded = data.get("image/png", data.get("image/jpeg"))
        if encoded is None:
            return False
        try:
            file = base64.b64decode(encoded) if isinstance(encoded, str) else encoded
            self.images.add(file and as_png(file))
        except (ImageRefused, ValueError) as error:
            self.stderr.write(f"{error}\n")
        return True


class _Publisher(DisplayPublisher):
    output: CellOutput

    def publish(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if not self.output.show(data) and "text/plain" in data:
            sys.stdout.write(f"{data['text/plain']}\n")

    def clear_output(self, wait: bool = False) -> None:
        """Do nothing: output is never cleared."""


class _Hook(DisplayHook):
    output: CellOutput

    def start_displayhook(self) -> None:
        """Do nothing."""

    def write_output_prompt(self) -> None:
        """Write no prompt."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        # As in a notebook, an image is shown without its repr.
        if self.output.show(format_dict):
            return
        text = BoundedText(self.output.limits.stdout_characters)
        text.write(format_dict.get("text/plain") or "")
        self.output.result = text.take()

    def finish_displayhook(self) -> None:
        """Do nothing."""


class _Interactive(InteractiveShell):
    display_pub_class = Type(_Publisher)
    displayhook_class = Type(_Hook)
    output: CellOutput

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing: there is no screen. Called by ``%matplotlib``."""

    def enable_matplotlib(self, gui: str | None = None) -> Any:
        """Handle ``%matplotlib``: GUI backends are replaced by inline."""
        if gui is None or gui.lower() not in _OFF_SCREEN:
            sys.stderr.write(_NO_SCREEN.format("figures are shown inline."))
            gui = "inline"
        return super().enable_matplotlib(gui)

    def ask_exit(self) -> None:
        sys.stderr.write("exit() and quit() do nothing here: the session stays open.\n")

    def _showtraceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        self.output.error_name = etype.__name__
        syntax = isinstance(evalue, SyntaxError)
        sys.stderr.write("\n".join(stb).strip() + "\n" if syntax else _plain_traceback(evalue))
        if "Rebuild the library with Windows, GTK+" in str(evalue):  # OpenCV's error.
            sys.stderr.write(_NO_SCREEN.format("show images with display(Image.fromarray(array))."))

    def system(self, cmd: str) -> NoReturn:
        raise PermissionError(f"shell commands cannot run in this sandbox: {cmd}")

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> NoReturn:
        self.system(cmd)


class _OutputViewer(ImageShow.Viewer):
    """Viewer of ``Image.show()`` that displays the image instead of starting a program."""

    def show(self, image: Image.Image, **options: Any) -> int:
        display(image)
        return 1


class Shell:
    """IPython shell, built and warmed once in the zygote; each forked child has a copy."""

    def __init__(self, limits: OutputLimits) -> None:
        self._output = CellOutput(limits)
        self._interruptible = False
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        config.InteractiveShell.xmode = "Plain"
        config.InteractiveShell.cache_size = 0
        shell: Any = _Interactive.instance(config=config)  # IPython is typed in part only.
        self._shell = shell
        self._state = SessionState(shell.user_ns, Path.cwd())
        shell.compile.get_code_name = _cell_name
        shell.output = self._output
        shell.display_pub.output = self._output
        shell.displayhook.output = self._output
        shell.display_formatter.active_types = ["text/plain", "image/png", "image/jpeg"]

    def warm(self) -> None:
        """Import common libraries and draw a figure, so that sessions start warm."""
        import numpy.random  # noqa: F401  # NumPy itself imports this one on first use.
        from matplotlib import pyplot
        from PIL import ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps  # noqa: F401

        from deepeyes_plugins.sandbox.kernels.fork import figures, fonts

        Image.init()
        ImageShow.register(_OutputViewer(), 0)
        self._shell.run_line_magic("matplotlib", "inline")
        pyplot.imshow([[0.0, 1.0]])
        pyplot.title("warm")
        png = self._shell.display_formatter.formatters["image/png"]
        figures.install(self._shell, self._unless_full)
        fonts.warn_once_per_cell(self._shell)
        png.for_type(Image.Image, self._unless_full(self._image_png))
        # Otherwise Pillow would encode a JPEG as well.
        self._shell.display_formatter.formatters["image/jpeg"].for_type(Image.Image, _no_jpeg)
        warnings.filterwarnings("ignore", message="To exit: use")
        reply = self.run(
            "from PIL import Image\nimport numpy\ndisplay(Image.new('L', (2, 2)))\n1/0"
        )
        if reply["error_name"] != "ZeroDivisionError" or not reply["images"]:
            raise RuntimeError(f"the warm-up cell failed: {reply['stderr']}")
        self._warm_state()
        self._shell.reset(new_session=True)

    def _warm_state(self) -> None:
        """Save and restore once, which imports modules and fills caches."""
        home = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            state = SessionState(self._shell.user_ns, Path(folder))
            self.run("def twice(x): return 2 * x\nclass Thing: pass\nthing = Thing()")
            with memfd("warm-up", 2 << 20) as memory:
                os.truncate(memory, state.save(memory, 1 << 20)["size"])
                state.restore(memory)
            os.chdir(home)

    def rehearse(self) -> None:
        """Run an empty cell, which copies the memory pages that the first cell will write."""
        self.run("None")
        self._shell.execution_count = 1

    def begin(self, images: list[Image.Image]) -> None:
        """Initialize this copy as a session with the given images."""
        import numpy

        numpy.random.seed()  # The fork copied the state; `random` reseeds itself.
        sys.stdin = io.StringIO()
        builtins.input = _no_input
        getpass.getpass = _no_input
        # IPython's wrapper of open() is not needed here, and would appear in tracebacks.
        self._shell.user_ns.pop("open", None)
        self._state = SessionState(self._shell.user_ns, Path.cwd())
        self._state.begin({f"image_{number}": image for number, image in enumerate(images, 1)})
        signal.signal(signal.SIGINT, self._on_interrupt)

    def run(self, code: str) -> dict[str, Any]:
        """Run one cell.

        Returns:
            Fields of the ``ExecutionResult``, and the names of the variables.
        """
        output = self._output
        output.clear()
        # A previous cell may have replaced them.
        sys.stdout, sys.stderr = output.stdout, output.stderr
        finished = False
        try:
            try:
                self._interruptible = True
                result = self._shell.run_cell(code, store_history=True)
                finished = result.success
            finally:
                self._interruptible = False
        except BaseException as error:
            # IPython reports exceptions of the code; this handles others: an interrupt in IPython
            # itself, and code that is not valid text.
            self._interruptible = False
            output.error_name = type(error).__name__
            output.stderr.write("".join(traceback.format_exception_only(error)))
        output.stderr.write(output.images.note)
        return {
            "outcome": "ok" if finished and output.error_name is None else "error",
            "stdout": output.stdout.take(),
            "stderr": output.stderr.take(),
            "result": output.result,
            "images": output.images.images,
            "error_name": None if output.error_name is None else printable(output.error_name),
            "names": [printable(name) for name in self._state.names()],
        }

    def save(self, memory: int, max_bytes: int) -> dict[str, Any]:
        """Save the session; see ``SessionState.save``. An interrupt results in a ``failure``."""
        try:
            try:
                self._interruptible = True
                return self._state.save(memory, max_bytes)
            finally:
                self._interruptible = False
        except BaseException as error:
            self._interruptible = False
            return {"failure": f"{type(error).__name__}: {error}"}

    def restore(self, memory: int) -> dict[str, Any]:
        """Restore a saved session; see ``SessionState.restore``."""
        try:
            lost = self._state.restore(memory)
        except BaseException as error:
            return {"failure": f"{type(error).__name__}: {error}"}
        names = [printable(name) for name in self._state.names()]
        return {"lost": reported(lost), "names": names}

    def listen_for_interrupts(self) -> None:
        """Reinstall the interrupt handler, which the last cell may have replaced."""
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        # An interrupt that arrives just after the end of a cell is ignored.
        if self._interruptible:
            raise KeyboardInterrupt

    def _unless_full(self, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes | None]:
        def encode_unless_full(shown: Any) -> bytes | None:
            return _CUT if self._output.images.full else encode(shown)

        return encode_unless_full

    def _image_png(self, image: Image.Image) -> bytes:
        if image.width * image.height > self._output.limits.image_pixels:
            raise ValueError(
                f"an image of {image.width}x{image.height} pixels is too large to return; "
                "crop or resize it first"
            )
        return encode_png(image)


def _cell_name(raw_code: str, transformed_code: str, number: int) -> str:
    return f"<cell {number}>"


def _plain_traceback(error: BaseException) -> str:
    """Format a traceback without the frames of IPython and of this package."""
    summary = traceback.TracebackException.from_exception(error)
    parts: list[traceback.TracebackException | None] = [summary]
    while parts:
        part = parts.pop()
        if part is not None:
            shown = [
                frame for frame in part.stack if not frame.filename.startswith(_HIDDEN_FOLDERS)
            ]
            part.stack = traceback.StackSummary.from_list(shown)
            parts += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(summary.format())


def _no_jpeg(shown: Any) -> None:
    return None


def _no_input(*args: Any, **kwargs: Any) -> NoReturn:
    raise EOFError("input() is not available: nobody is at the keyboard of this session")
