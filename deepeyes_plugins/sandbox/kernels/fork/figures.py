"""Figures as PNG: the picture that stock matplotlib gives in a notebook, in half of its time.

Stock code draws a figure twice: once only to learn how much of it to keep (``bbox_inches="tight"``),
once for real. Where the bounding box is known without the first drawing, that is left out. It is
known if no artist moves when it is drawn. Of the common artists this can be read in their code; of
matplotlib's others it is found out: after the real drawing they are where they belong, so the box
is asked for again, and if it is another one the figure is drawn as stock code does it. So is a
figure in whose drawing code from elsewhere has a say.
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
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.transforms import Bbox
from PIL import Image

from deepeyes_plugins.sandbox.kernels.fork.images import encode_pixels, refuse_empty

_STOCK_OPTIONS: Final = {"bbox_inches": "tight"}
_TEXT_SETTINGS: Final = tuple(
    name for name in matplotlib.rcParams if name.startswith(("font.", "text.", "mathtext."))
)


class _Renderer(RendererAgg):
    """A renderer that shares what matplotlib remembers of the size of texts.

    matplotlib keeps that by renderer, so the drawing would measure every text again that was
    measured for the bounding box. Renderers that measure alike are equal here.
    """

    def __init__(self, width: float, height: float, dpi: float) -> None:
        super().__init__(width, height, dpi)
        settings = [matplotlib.rcParams[name] for name in _TEXT_SETTINGS]
        self._measures = repr((dpi, len(fontManager.ttflist), settings))
        self._hash = hash(self._measures)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Renderer) and self._measures == other._measures

    def __hash__(self) -> int:
        return self._hash


class _Pixels(io.BytesIO):
    """A file that makes a PNG of the pixels that a canvas writes to it."""

    png = b""

    def write(self, pixels: Any) -> int:
        height, width, _ = pixels.shape
        self.png = encode_pixels(pixels, width, height, "RGBA")
        return len(self.png)


# Artists of matplotlib's that drawing does not move, once their bounding box has been asked for.
_STATIC: Final = frozenset(
    {
        *("Axes", "XAxis", "YAxis", "Spine", "_ColorbarSpine"),
        *("Text", "Annotation", "Legend", "Line2D", "AxLine"),
        *("Rectangle", "Circle", "Ellipse", "Arc", "Polygon"),
        *("RegularPolygon", "FancyBboxPatch", "FancyArrow", "PathPatch", "StepPatch"),
        *("Wedge"),
    }
)
# The same, but drawing may find the range of their values, which a colour bar shows.
_STATIC_ONCE_SCALED: Final = frozenset(
    {
        *("AxesImage", "QuadMesh", "PathCollection", "LineCollection", "PolyCollection"),
        *("FillBetweenPolyCollection", "PatchCollection"),
    }
)

# The renderer that measured last. It stays, and with it all sizes of texts that it came to know.
_measuring: list[_Renderer] = []
_fast_images_are_equal = False


def figure_png(figure: Figure) -> bytes | None:
    """Draw a figure as the inline backend does.

    Returns:
        The PNG file, or None where the figure has nothing on it.
    """
    if not figure.axes and not figure.lines:
        return None
    with _fast_images(figure):
        if not _is_stock(figure):
            return _draw(figure, "tight")
        with _layout_frozen(figure):
            with _ticks_cached(figure):
                box = _tight_box(figure)
            with _ticks_cached(figure), _text_sizes_shared(figure):
                png = _draw(figure, box)
            if _is_static(figure) or _same(box, _tight_box(figure)):
                return png
            return _draw(figure, "tight")


def install(
    shell: Any, guard: Callable[[Callable[[Figure], Any]], Callable[[Figure], Any]]
) -> None:
    """Make an IPython shell show its figures in this way, whatever formats the code asks for.

    Args:
        shell: The shell, with the inline backend switched on.
        guard: Wraps what turns a figure into a PNG.
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
    # pyplot would draw what a cell leaves open before the inline backend shows and closes it.
    pyplot.uninstall_repl_displayhook()
    pyplot.install_repl_displayhook()
    # `%config InlineBackend` and `set_matplotlib_formats` come through here; only PNG goes out.
    for module in (pylabtools, import_module("matplotlib_inline.backend_inline")):
        module.select_figure_formats = select  # type: ignore[attr-defined]
    select(shell, "png", **_STOCK_OPTIONS)


def _without_empty_images(imshow: Callable[..., Any]) -> Callable[..., Any]:
    """Have ``imshow`` say that an image is empty, where NumPy would speak of a reduction operation."""

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


@contextlib.contextmanager
def _text_sizes_shared(figure: Figure) -> Iterator[None]:
    """Have the canvas draw with a renderer that knows the sizes of texts already."""
    canvas: Any = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        yield
        return

    def get_renderer() -> RendererAgg:
        key = *canvas.get_width_height(physical=True), figure.dpi
        if canvas._lastKey != key:
            canvas.renderer, canvas._lastKey = _Renderer(*key), key
        return canvas.renderer

    canvas.get_renderer = get_renderer
    try:
        yield
    finally:
        del canvas.get_renderer


def _tight_box(figure: Figure) -> Bbox:
    """The part of the figure that has something on it, in inches."""
    renderer = _Renderer(1, 1, figure.dpi)
    if _measuring != [renderer]:
        _measuring[:] = [renderer]
    for axes in figure.axes:
        # The limits of one may follow from the shape of another, so first all get theirs.
        locator: Any = axes.get_axes_locator()
        axes.apply_aspect(locator(axes, renderer) if locator else None)
    box = figure.get_tightbbox(renderer)
    return Bbox(box.padded(matplotlib.rcParams["savefig.pad_inches"]).get_points())


def _same(one: Bbox, other: Bbox) -> bool:
    return bool((one.get_points() == other.get_points()).all())


@contextlib.contextmanager
def _layout_frozen(figure: Figure) -> Iterator[None]:
    """Have the figure's layout engine do its work now, and not again."""
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
    """Have no axis work out its ticks again where nothing that they depend on has changed."""
    every_axis: list[Any] = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for axis in every_axis:
        axis._update_ticks = _CachedTicks(axis)
    try:
        yield
    finally:
        for axis in every_axis:
            del axis._update_ticks


class _CachedTicks:
    """The ticks of an axis: matplotlib asks for them five times in one drawing."""

    def __init__(self, axis: Any) -> None:
        self._axis = axis
        self._key: object = None
        self._ticks: list[Any] = []

    def __call__(self) -> list[Any]:
        axis, axes = self._axis, self._axis.axes
        key = (*axis.get_view_interval(), *axis.get_data_interval(), *axes.bbox.bounds)
        # One that several axes share speaks for the axis that used it last.
        shared = any(part.axis is not axis for part in (axis.major.formatter, axis.minor.formatter))
        if shared or key != self._key:
            self._ticks = type(axis)._update_ticks(axis)
            self._key = key
        return self._ticks


def _is_stock(figure: Figure) -> bool:
    """Whether only matplotlib's own flat axes and artists have a say in the drawing."""
    return (
        type(figure) is Figure
        and not figure.subfigs
        and not figure.canvas.callbacks.callbacks.get("draw_event")
        and all(type(axes) is Axes for axes in figure.axes)
        and all(type(artist).__module__.startswith("matplotlib.") for artist in _artists(figure))
    )


def _is_static(figure: Figure) -> bool:
    """Whether drawing these artists moves nothing that measuring them has not moved."""
    return not any(axes.child_axes for axes in figure.axes) and all(
        type(artist).__name__ in _STATIC or _is_coloured(artist) for artist in _artists(figure)
    )


def _is_coloured(artist: Any) -> bool:
    """Whether this maps numbers to colours, if any, on a scale that drawing does not change."""
    if type(artist).__name__ not in _STATIC_ONCE_SCALED:
        return False
    values = artist.get_array()
    return values is None or artist.norm.scaled() or _is_photo(artist)


@contextlib.contextmanager
def _fast_images(figure: Figure) -> Iterator[None]:
    """Spare matplotlib the slow half of its work on images like photos."""
    images = [
        image
        for axes in figure.axes
        for image in axes.images
        if _fast_images_are_equal and _is_photo(image)
    ]
    for image in images:
        image.make_image = functools.partial(_make_image, image)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for image in images:
            del image.make_image


def _is_photo(image: Any) -> bool:
    pixels = image.get_array()
    return (
        type(image) is AxesImage
        and pixels is not None
        and (pixels.dtype, pixels.ndim, pixels.shape[-1]) == (np.uint8, 3, 3)
        and image.get_alpha() is None
        and not np.ma.is_masked(pixels)
    )


def _make_image(image: Any, *args: Any, **options: Any) -> Any:
    # What matplotlib makes of bytes itself, but through masked arrays and copies of copies.
    original = image._A
    pixels = np.ones((*original.shape[:2], 4))
    np.divide(np.asarray(original), 0xFF, dtype=np.float32, out=pixels[..., :3])
    image._A = pixels
    try:
        return AxesImage.make_image(image, *args, **options)
    finally:
        image._A = original


def _compare_images() -> bool:
    """Whether this version of matplotlib gives the same pixels in the fast way."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    figure = Figure(figsize=(1, 1))
    image = figure.add_axes((0.1, 0.1, 0.8, 0.8)).imshow(pixels)
    renderer = _Renderer(100, 100, figure.dpi)
    stock, fast = image.make_image(renderer)[0], _make_image(image, renderer)[0]
    return bool(np.array_equal(stock, fast))


def warm() -> None:
    """Find out what this matplotlib allows; called once, before sessions are forked."""
    global _fast_images_are_equal
    _fast_images_are_equal = _compare_images()
