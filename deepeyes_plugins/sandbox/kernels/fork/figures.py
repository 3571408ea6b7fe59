"""Fast rendering of matplotlib figures to PNG, with the same pixels as the inline backend.

With ``bbox_inches="tight"``, stock matplotlib draws a figure twice: first to compute the bounding
box, then for the output. Here the box is computed without drawing, which is valid if drawing moves
no artist. That is known for the common artists. For other artists of matplotlib, the box is
computed again after the drawing, and if it differs, the figure is drawn the stock way. So is a
figure with artists or callbacks that are not matplotlib's.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Final

import matplotlib
import numpy as np
from IPython.core import pylabtools
from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from deepeyes_plugins.sandbox.kernels.fork.images import encode_pixels, refuse_empty

_STOCK_OPTIONS: Final = {"bbox_inches": "tight"}


class _Pixels(io.BytesIO):
    """File object that encodes the pixels which a canvas writes to it as PNG."""

    png = b""

    def write(self, pixels: Any) -> int:
        height, width, _ = pixels.shape
        self.png = encode_pixels(pixels, width, height, "RGBA")
        return len(self.png)


# Artists that drawing does not move, once their bounding box was computed.
_STATIC: Final = frozenset(
    {
        *("Axes", "XAxis", "YAxis", "Spine", "_ColorbarSpine"),
        *("Text", "Annotation", "Legend", "Line2D", "AxLine"),
        *("Rectangle", "Circle", "Ellipse", "Arc", "Polygon"),
        *("RegularPolygon", "FancyBboxPatch", "FancyArrow", "PathPatch", "StepPatch", "Wedge"),
    }
)
# The same, unless drawing sets the range of their colour scale, which a colour bar shows.
_STATIC_ONCE_SCALED: Final = frozenset(
    {
        *("AxesImage", "QuadMesh", "PathCollection", "LineCollection", "PolyCollection"),
        *("FillBetweenPolyCollection", "PatchCollection"),
    }
)


def figure_png(figure: Figure) -> bytes | None:
    """Draw a figure as the inline backend does.

    Returns:
        The PNG file, or None if the figure is empty.
    """
    if not figure.axes and not figure.lines:
        return None
    if not _is_stock(figure):
        return _draw(figure, "tight")
    with _layout_frozen(figure):
        with _ticks_cached(figure):
            box = _tight_box(figure)
            png = _draw(figure, box)
        if _is_static(figure) or np.array_equal(box, _tight_box(figure)):
            return png
        return _draw(figure, "tight")


def install(
    shell: Any, guard: Callable[[Callable[[Figure], Any]], Callable[[Figure], Any]]
) -> None:
    """Make an IPython shell render figures as PNG with this module, whatever formats are selected.

    Args:
        shell: The shell, with the inline backend enabled.
        guard: Decorates the function that encodes a figure as PNG.
    """

    def select(shell: Any, formats: str | Iterable[str], **options: Any) -> None:
        names = {formats} if isinstance(formats, str) else set(formats)
        sharp = bool(names & {"retina", "png2x"})

        def encode(figure: Figure) -> Any:
            if sharp or options != _STOCK_OPTIONS:
                return pylabtools.print_figure(figure, "retina" if sharp else "png", **options)
            return figure_png(figure)

        shell.display_formatter.formatters["image/png"].for_type(Figure, guard(encode))

    Axes.imshow = _without_empty_images(Axes.imshow)  # type: ignore[method-assign]
    # Otherwise pyplot would draw open figures before the inline backend shows and closes them.
    pyplot.uninstall_repl_displayhook()
    pyplot.install_repl_displayhook()
    # `%config InlineBackend` and `set_matplotlib_formats` call this function; only PNG is returned.
    for module in (pylabtools, import_module("matplotlib_inline.backend_inline")):
        module.select_figure_formats = select  # type: ignore[attr-defined]
    select(shell, "png", **_STOCK_OPTIONS)


def _without_empty_images(imshow: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``imshow`` raise a clear error for an empty image."""

    @functools.wraps(imshow)
    def checked(axes: Axes, X: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(X, Image.Image):
            refuse_empty(*X.size)
        elif len(shape := np.shape(X)) > 1:
            refuse_empty(shape[1], shape[0])
        return imshow(axes, X, *args, **kwargs)

    return checked


def _draw(figure: Figure, box: Any) -> bytes:
    pixels = _Pixels()
    figure.canvas.print_figure(
        pixels,
        format="rgba",
        dpi=figure.dpi,
        facecolor=figure.get_facecolor(),
        edgecolor=figure.get_edgecolor(),
        bbox_inches=box,
    )
    return pixels.png


def _tight_box(figure: Figure) -> Bbox:
    """Compute the tight bounding box of a figure, in inches."""
    renderer = RendererAgg(1, 1, figure.dpi)
    for axes in figure.axes:
        # The limits of one may depend on the aspect of another, so all aspects are applied first.
        locator: Any = axes.get_axes_locator()
        axes.apply_aspect(locator(axes, renderer) if locator else None)
    box = figure.get_tightbbox(renderer)
    return Bbox(box.padded(matplotlib.rcParams["savefig.pad_inches"]).get_points())


@contextlib.contextmanager
def _layout_frozen(figure: Figure) -> Iterator[None]:
    """Run the figure's layout engine now, and disable it while in the context."""
    engine: Any = figure.get_layout_engine()
    if engine is not None and figure.axes:
        with contextlib.suppress(ValueError):  # As in `Figure.draw`.
            engine.execute(figure)
    drawn: Any = figure
    drawn._layout_engine = None
    try:
        yield
    finally:
        drawn._layout_engine = engine


def _artists(figure: Figure) -> Iterator[Artist]:
    for artist in (figure, *figure.axes):
        yield from artist.get_children()


@contextlib.contextmanager
def _ticks_cached(figure: Figure) -> Iterator[None]:
    """Cache the ticks of each axis until something changes that they depend on."""
    every_axis: list[Any] = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for axis in every_axis:
        axis._update_ticks = _CachedTicks(axis)
    try:
        yield
    finally:
        for axis in every_axis:
            del axis._update_ticks


class _CachedTicks:
    """Cached ticks of an axis, which matplotlib computes five times per drawing."""

    def __init__(self, axis: Any) -> None:
        self._axis = axis
        self._key: object = None
        self._ticks: list[Any] = []

    def __call__(self) -> list[Any]:
        axis, axes = self._axis, self._axis.axes
        key = (*axis.get_view_interval(), *axis.get_data_interval(), *axes.bbox.bounds)
        # A formatter that several axes share has the state of the axis that used it last.
        shared = any(part.axis is not axis for part in (axis.major.formatter, axis.minor.formatter))
        if shared or key != self._key:
            self._ticks = type(axis)._update_ticks(axis)
            self._key = key
        return self._ticks


def _is_stock(figure: Figure) -> bool:
    """Return whether the figure consists of matplotlib's own 2D axes and artists only."""
    return (
        type(figure) is Figure
        and not figure.subfigs
        and not figure.canvas.callbacks.callbacks.get("draw_event")
        and all(type(axes) is Axes for axes in figure.axes)
        and all(type(artist).__module__.startswith("matplotlib.") for artist in _artists(figure))
    )


def _is_static(figure: Figure) -> bool:
    """Return whether the bounding box is valid without a drawing."""
    return not any(axes.child_axes for axes in figure.axes) and all(
        type(artist).__name__ in _STATIC or _is_coloured(artist) for artist in _artists(figure)
    )


def _is_coloured(artist: Any) -> bool:
    """Return whether an artist is static since drawing does not change its colour scale."""
    if type(artist).__name__ not in _STATIC_ONCE_SCALED:
        return False
    values = artist.get_array()
    has_scale = values is not None and values.ndim < 3  # RGB images have none.
    return not has_scale or bool(artist.norm.scaled())
