"""Figures as a session returns them, against those of stock matplotlib in a notebook."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  # Imports every kind of artist.
import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine as LayoutEngine
from PIL import Image

from deepeyes_plugins.sandbox import (
    ExecutionResult,
    SandboxClient,
    SandboxSession,
    SandboxSettings,
)
from deepeyes_plugins.sandbox.kernels.fork import figures
from deepeyes_plugins.sandbox.kernels.fork.provider import ForkProvider

from .conftest import decoded, png

# Every plot starts with these names and with image_1, a photo of 300x200 pixels.
NAMES = "import numpy as np\nimport matplotlib.pyplot as plt\nx = np.linspace(0, 10, 50)\n"

PLOTS = {
    "crop": "plt.imshow(image_1.crop((20, 20, 180, 150))); plt.axis('off')",
    "enlarged crop": "plt.imshow(image_1.crop((20, 20, 60, 50)))",
    "grey image": "plt.imshow(image_1.convert('L'), cmap='gray')",
    "image with alpha": "plt.imshow(image_1.convert('RGBA').rotate(20)); plt.gcf().set_alpha(0.5)",
    "faded image": "plt.imshow(image_1, alpha=0.3, origin='lower', aspect='auto')",
    "image of floats": "plt.imshow(np.asarray(image_1) / 255)",
    "masked image": "plt.imshow(np.ma.masked_less(np.asarray(image_1), 90))",
    "overlapping images": "plt.imshow(image_1); plt.imshow(image_1, extent=(50, 350, 250, 50))\n"
    "plt.xlim(0, 350)",
    "image without a scale": "from matplotlib.image import AxesImage\nfig, ax = plt.subplots()\n"
    "shown = AxesImage(ax, extent=(0, 9, 0, 9)); shown.set_data(np.arange(9.).reshape(3, 3))\n"
    "ax.add_image(shown); ax.set(xlim=(0, 9), ylim=(0, 9)); fig.colorbar(shown)",
    "figure image": "plt.figimage(np.asarray(image_1)); plt.plot(x)",
    "crops side by side": "fig, axes = plt.subplots(1, 3, figsize=(12, 4))\n"
    "for n, ax in enumerate(axes):\n"
    "    ax.imshow(image_1.crop((n * 90, 0, n * 90 + 90, 90))); ax.set_title(f'part {n}')\n"
    "    ax.axis('off')\nplt.tight_layout()",
    "lines with legend": "plt.plot(x, np.sin(x), label='sin'); plt.plot(x, x, label='x')\n"
    "plt.legend(); plt.title('Waves'); plt.xlabel('time'); plt.ylabel('height'); plt.grid()",
    "bars": "plt.bar(['one', 'two', 'a long name'], [3, 5, 2]); plt.xticks(rotation=45)",
    "scatter with colour bar": "plt.scatter(x, np.sin(x), c=x, s=40); plt.colorbar(label='value')",
    "colour bar of an image": "plt.imshow(np.outer(x, x)); plt.colorbar(orientation='horizontal')",
    "2x2": "fig, axes = plt.subplots(2, 2, sharex=True, sharey='row')\n"
    "for n, ax in enumerate(axes.flat): ax.plot(x, x**n)",
    "constrained layout": "fig, axes = plt.subplots(2, 2, layout='constrained')\n"
    "for n, ax in enumerate(axes.flat): ax.plot(x); ax.set_xlabel('a label'); ax.set_title(str(n))",
    "compressed layout": "fig, axes = plt.subplots(2, 2, layout='compressed')\n"
    "for ax in axes.flat: shown = ax.imshow(image_1)\nfig.colorbar(shown, ax=axes)",
    "tight layout engine": "fig, axes = plt.subplots(2, 1, layout='tight')\n"
    "axes[0].set_title('upper'); axes[1].plot(x); axes[1].set_ylabel('many\\nlines')",
    "3D": "ax = plt.figure().add_subplot(projection='3d'); ax.plot(x, np.sin(x), x)\n"
    "ax.set_zlabel('depth'); ax.set_title('3D')",
    "polar": "plt.polar(x, x); plt.title('polar')",
    "pie": "plt.pie([3, 5, 2], labels=['a', 'b', 'c'], autopct='%d%%')",
    "legend outside": "plt.plot(x, label='a line'); plt.legend(bbox_to_anchor=(1.05, 1))",
    "figure legend and title": "fig, ax = plt.subplots(); ax.plot(x, label='line')\n"
    "fig.legend(loc='upper left', bbox_to_anchor=(1, 1)); fig.suptitle('above', y=1.05)",
    "twin axes": "fig, ax = plt.subplots(); ax.plot(x); other = ax.twinx(); other.plot(x**3, 'r')\n"
    "other.set_ylabel('cubes'); ax.xaxis.tick_top(); ax.set_title('over the ticks')",
    "log axes": "plt.loglog(x + 0.1, np.exp(x)); plt.ylabel(r'$e^x$')",
    "offset": "plt.plot(x, 1e9 + x * 1e-3)",
    "equal aspect": "plt.plot(x, np.sin(x)); plt.axis('equal')",
    "shared equal aspect": "fig, (a, b) = plt.subplots(1, 2, sharex=True)\n"
    "a.plot(x, 9 * x); b.plot(x, x); a.set_aspect('equal', adjustable='datalim')",
    "annotation outside": "plt.plot(x); plt.annotate('there', (25, 5), (70, 12), arrowprops={})",
    "transparent": "fig, ax = plt.subplots(facecolor=(0, 0, 0, 0)); ax.plot(x)\n"
    "ax.patch.set_alpha(0.5)",
    "other resolution": "plt.figure(dpi=57, figsize=(5.3, 4.1)); plt.plot(x)",
    "set resolution": "plt.rcParams['figure.dpi'] = 150; plt.plot(x)",
    "dark style": "plt.style.use('dark_background'); plt.plot(x); plt.title('light on dark')",
    "other padding": "plt.rcParams['savefig.pad_inches'] = 0.5; plt.plot(x)",
    "autolayout": "plt.rcParams['figure.autolayout'] = True; plt.plot(x); plt.ylabel('a\\nb')",
    "file and screen": "plt.plot(x); plt.savefig('plot.png', dpi=200); plt.savefig('plot.pdf')",
    "drawn before": "fig, ax = plt.subplots(); fig.canvas.draw(); ax.plot(x); fig.canvas.draw()",
    "inset": "fig, ax = plt.subplots(); ax.plot(x); inner = ax.inset_axes((0.6, 0.1, 0.5, 0.4))\n"
    "inner.imshow(image_1); ax.indicate_inset_zoom(inner); inner.set_title('inside')",
    "second scale": "fig, ax = plt.subplots(); ax.plot(x)\n"
    "ax.secondary_xaxis('top', functions=(lambda v: 2 * v, lambda v: v / 2))",
    "arrows": "q = plt.quiver(x[:8], x[:8], x[:8], -x[:8]); plt.quiverkey(q, 1.1, 1.1, 5, 'key')",
    "table": "plt.table([['a', 'b'], ['c', 'd']], loc='bottom'); plt.axis('off')",
    "boxes": "plt.boxplot([x, x * 2]); plt.errorbar([1, 2], [5, 9], yerr=2, capsize=5)",
    "contours": "plt.contourf(np.outer(x, x)); plt.contour(np.outer(x, x), colors='k')",
    "histogram": "plt.hist(np.sin(x), bins=12); plt.fill_between([0, 1], 3, 6, alpha=0.3)",
    "mesh without a scale": "fig, ax = plt.subplots(); m = ax.pcolormesh(np.outer(x, x))\n"
    "m.norm.vmin = m.norm.vmax = None; ax.set_title('mesh')",
    "dates": "import datetime as dt\n"
    "plt.plot([dt.date(2024, 1, 1), dt.date(2024, 3, 9)], [1, 2]); plt.gcf().autofmt_xdate()",
    "wrapped text": "plt.text(0.6, 0.5, 'a text that is too long for its place ' * 2, wrap=True)",
    "shapes": "from matplotlib.patches import Circle, Rectangle\nplt.imshow(image_1)\n"
    "plt.gca().add_patch(Rectangle((30, 40), 90, 50, fill=False, ec='red', lw=3))\n"
    "plt.gca().add_patch(Circle((290, 190), 40, clip_on=False)); plt.axvline(50)",
    "aligned labels": "fig, axes = plt.subplots(2, 1); axes[0].plot(x * 1e4); axes[1].plot(x)\n"
    "for ax in axes: ax.set_ylabel('height')\nfig.align_ylabels()",
    "ticks by hand": "plt.plot(x); plt.xticks([0, 25], ['none', 'half']); plt.minorticks_on()\n"
    "plt.gca().yaxis.set_major_formatter(lambda value, place: f'{value:.1f} m')",
    "one formatter for two": "from matplotlib.ticker import ScalarFormatter\n"
    "fig, axes = plt.subplots(1, 2); both = ScalarFormatter()\n"
    "for n, ax in enumerate(axes): ax.plot(x, 1e8**n + x); ax.yaxis.set_major_formatter(both)",
    "artist of one's own": "from matplotlib.lines import Line2D\nclass Mover(Line2D):\n"
    "    def draw(self, renderer):\n"
    "        super().draw(renderer); self.axes.set_title('moved'); self.axes.set_ylim(0, 99)\n"
    "plt.gca().add_line(Mover([0, 1], [0, 1]))",
    "listener": "fig, ax = plt.subplots(); ax.plot(x)\n"
    "fig.canvas.mpl_connect('draw_event', lambda e: ax.set_xlabel(ax.get_xlabel() + 'drawn '))",
    "parts of a figure": "fig = plt.figure(); left, right = fig.subfigures(1, 2)\n"
    "left.subplots().plot(x); left.suptitle('left'); right.subplots().imshow(image_1)",
    "hidden axes": "fig, (a, b) = plt.subplots(1, 2); a.plot(x); b.set_visible(False)",
}

STOCK = """
import base64, io, json, sys
import matplotlib
matplotlib.use("module://matplotlib_inline.backend_inline")
from IPython.core.pylabtools import print_figure
from matplotlib import pyplot
from PIL import Image

asked = json.load(sys.stdin)
image = Image.open(io.BytesIO(base64.b64decode(asked["image"])))
pictures = {}
for name, code in asked["plots"].items():
    matplotlib.rcdefaults()
    matplotlib.use("module://matplotlib_inline.backend_inline")
    exec(code, {"image_1": image})
    pictures[name] = base64.b64encode(print_figure(pyplot.gcf())).decode()
    pyplot.close("all")
json.dump(pictures, sys.stdout)
"""


def photo() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (10, 15, 3), np.uint8)
    return Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image.Image]:
    """What IPython's own formatter makes of the plots, in a process that knows nothing of ours."""
    plots = {name: NAMES + code for name, code in PLOTS.items()}
    asked = {"plots": plots, "image": base64.b64encode(png(photo())).decode()}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        cwd=tmp_path_factory.mktemp("stock"),
        text=True,
        check=True,
    )
    pictures = json.loads(process.stdout)
    return {name: decoded(base64.b64decode(data)) for name, data in pictures.items()}


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of all channels, of 255."""
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.mark.parametrize("name", PLOTS)
async def test_a_figure_is_that_of_stock_matplotlib(
    client: SandboxClient, stock: dict[str, Image.Image], name: str
) -> None:
    async with await client.create_session([png(photo())]) as session:
        result = await session.execute(f"{NAMES}{PLOTS[name]}\nplt.show()", 60)
    assert result.outcome == "ok", result.stderr
    (shown,) = map(decoded, result.images)
    assert (shown.mode, shown.size) == (stock[name].mode, stock[name].size)
    assert difference(shown, stock[name]) == 0


def test_a_matplotlib_that_the_fast_drawing_does_not_know_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With a private name that is gone or no longer used, it does what stock matplotlib does.
    calls: Counter[str] = Counter()
    for kind, name in ((Figure, "draw"), (Axis, "_update_ticks"), (LayoutEngine, "execute")):
        original = getattr(kind, name)

        def counted(self: Any, *arguments: Any, call: Any = original, key: str = name) -> Any:
            calls[key] += 1
            return call(self, *arguments)

        monkeypatch.setattr(kind, name, counted)
    figure = Figure(layout="constrained")
    figure.subplots().plot([1, 2])
    figures.figure_png(figure)
    assert (calls["draw"], calls["execute"]) == (1, 1), "stock: 2 and 2"
    figure.set_layout_engine("none")
    calls.clear()
    figures.figure_png(figure)
    assert (calls["draw"], calls["_update_ticks"]) == (1, 4), "stock: 2 and 22"
    known = {kind.__name__ for kind in subclasses(Artist)}
    assert known >= figures._STATIC | figures._STATIC_ONCE_SCALED


def subclasses(kind: type) -> set[type]:
    direct: list[type] = kind.__subclasses__()
    return {*direct, *(deeper for one in direct for deeper in subclasses(one))}


# A figure in a variable, and pyplot's present one.
PLOT = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(); ax.plot([1, 2])\n"


async def run(session: SandboxSession, code: str) -> ExecutionResult:
    return await session.execute(code, timeout=60)


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        (PLOT + "plt.show()", 1),
        (PLOT + "plt.show(); plt.show()", 1),
        (PLOT + "fig.show()", 1),
        (PLOT, 1),
        (PLOT + "display(fig); plt.close()", 1),
        (PLOT + "plt.close()\nfig", 1),
        (PLOT + "display(fig)\nplt.show()", 2),
        (PLOT + "plt.figure(); plt.plot([3, 4])", 2),
        (PLOT + "plt.savefig('plot.png'); plt.close()", 0),
        (PLOT + "plt.pause(0.01)", 1),
        (PLOT + "plt.ion(); plt.draw()", 1),
        (PLOT + "plt.ioff(); plt.show()", 1),
        ("import matplotlib.pyplot as plt\nplt.ioff()\n" + PLOT, 0),
        ("from matplotlib.figure import Figure\nf = Figure(); f.subplots(); f", 1),
    ],
)
async def test_figures_appear_as_in_a_notebook(
    session: SandboxSession, cell: str, count: int
) -> None:
    result = await run(session, cell)
    assert (result.outcome, len(result.images), result.stderr) == ("ok", count, "")


async def test_a_figure_that_is_shown_is_closed_and_the_next_cell_starts_afresh(
    session: SandboxSession,
) -> None:
    await run(session, PLOT)
    result = await run(session, "ax.set_title('still there'); len(plt.get_fignums())")
    assert (result.result, result.images) == ("0", [])
    assert len((await run(session, "fig")).images) == 1


async def test_an_empty_figure_is_no_image(session: SandboxSession) -> None:
    result = await run(session, "import matplotlib.pyplot as plt\nplt.figure(); plt.show()")
    assert (result.images, result.stdout) == ([], "<Figure size 640x480 with 0 Axes>\n")


async def test_settings_and_pixels_that_code_can_see_are_those_of_a_notebook(
    session: SandboxSession,
) -> None:
    result = await run(
        session,
        PLOT + "import matplotlib\ndisplay(fig)\n"
        "stock = matplotlib.rcParamsDefault\n"
        "changed = {name for name, value in matplotlib.rcParams.items() if value != stock[name]}\n"
        "pixels = fig.canvas.buffer_rgba()\n"
        "(changed, matplotlib.get_backend(), fig.canvas.get_width_height(), len(pixels.shape))",
    )
    assert result.result == "({'interactive'}, 'inline', (640, 480), 3)"


@pytest.mark.parametrize("shown", ["image.show()", "ImageShow.show(image)"])
async def test_an_image_that_is_shown_is_returned(session: SandboxSession, shown: str) -> None:
    result = await run(
        session, f"from PIL import Image, ImageShow\nimage = Image.new('RGB', (40, 30))\n{shown}"
    )
    assert result.outcome == "ok", result.stderr
    assert [decoded(image).size for image in result.images] == [(40, 30)]


async def test_an_animation_shows_its_first_picture(session: SandboxSession) -> None:
    result = await run(
        session,
        PLOT + "from matplotlib.animation import FuncAnimation\n"
        "moving = FuncAnimation(fig, lambda n: ax.set_title(str(n)), frames=3)\nplt.show()",
    )
    assert (result.outcome, len(result.images)) == ("ok", 1)


@pytest.mark.parametrize("toolkit", ["widget", "notebook", "qt", "tk", ""])
async def test_a_window_that_a_magic_asks_for_becomes_an_image(
    session: SandboxSession, toolkit: str
) -> None:
    result = await run(session, f"%matplotlib {toolkit}\n{PLOT}plt.show()")
    assert (result.outcome, len(result.images)) == ("ok", 1)
    assert result.stderr == "There is no screen here: figures are shown inline.\n"


@pytest.mark.parametrize("backend", ["TkAgg", "Qt5Agg", "WebAgg"])
async def test_a_backend_that_needs_a_screen_is_an_error_and_figures_still_work(
    session: SandboxSession, backend: str
) -> None:
    refused = await run(
        session, f"import matplotlib\nmatplotlib.use('{backend}')\n{PLOT}plt.show()"
    )
    assert refused.error_name in ("ImportError", "PermissionError")
    await run(session, "%matplotlib inline\nplt.close('all')")
    assert len((await run(session, PLOT)).images) == 1


@pytest.mark.parametrize("call", ["imshow('window', image)", "waitKey(0)", "namedWindow('window')"])
async def test_opencv_says_that_there_is_no_screen(session: SandboxSession, call: str) -> None:
    result = await run(
        session, f"import cv2, numpy as np\nimage = np.zeros((9, 9), np.uint8)\ncv2.{call}"
    )
    assert result.error_name == "error"
    assert result.stderr.endswith(
        "There is no screen here: show images with display(Image.fromarray(array)).\n"
    )


async def test_the_inline_backend_can_be_set_up(session: SandboxSession) -> None:
    async def size(setting: str) -> tuple[int, int]:
        result = await run(session, f"%config InlineBackend.{setting}\n{PLOT}plt.show()")
        (image,) = map(decoded, result.images)
        return image.size

    width, height = await size("figure_format = 'png'")
    assert await size("figure_format = 'svg'") == (width, height)
    assert await size("figure_format = 'retina'") == pytest.approx((2 * width, 2 * height), abs=2)
    await size("figure_format = 'png'")
    assert await size("print_figure_kwargs = {'bbox_inches': None}") == (640, 480)


async def test_five_hundred_figures_are_cut(session: SandboxSession) -> None:
    result = await run(
        session,
        "import matplotlib.pyplot as plt\nfor n in range(500): plt.figure(); plt.plot([1, n])",
    )
    assert (result.outcome, len(result.images), result.stdout) == ("ok", 3, "")
    assert "497 images cut: a cell returns at most 3" in result.stderr
    assert (await run(session, "len(plt.get_fignums())")).result == "0"


TEXT = "import matplotlib.pyplot as plt\nplt.figtext(0.5, 0.5, '{}'); plt.axis('off'); plt.show()"


async def test_chinese_japanese_and_korean_characters_have_glyphs(session: SandboxSession) -> None:
    result = await run(session, TEXT.format("中文標題 日本語 한국어"))
    assert (result.outcome, result.stderr) == ("ok", "")
    single = [decoded((await run(session, TEXT.format(text))).images[0]) for text in "中日한국"]
    assert len({image.tobytes() for image in single}) == 4


async def test_a_formula_may_stand_in_chinese_text(session: SandboxSession) -> None:
    result = await run(session, TEXT.format("面积 $m^2$"))
    other = await run(session, TEXT.format("体重 $m^2$"))
    assert (result.outcome, result.stderr) == ("ok", "")
    assert result.images != other.images


async def test_a_font_that_is_not_there_is_named_once_per_cell(session: SandboxSession) -> None:
    expected = decoded((await run(session, TEXT.format("中文 text"))).images[0])
    ask = "import matplotlib.pyplot as plt\nplt.rcParams['font.sans-serif'] = ['SimHei']\n"
    for _ in range(2):
        result = await run(session, ask + 2 * (TEXT.format("中文 text") + "\n"))
        assert result.stderr.count("SimHei") == 1 and "Glyph" not in result.stderr
        assert difference(decoded(result.images[0]), expected) == 0


async def test_the_server_says_whether_there_is_a_font(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folders in (SandboxSettings().font_folders, (str(tmp_path),)):
        caplog.clear()
        provider = ForkProvider(SandboxSettings(font_folders=folders))
        try:
            await provider.start()
            note = provider.notes()["cjk_font"]
            kernel = await provider.open([])
            shown = await kernel.execute(TEXT.format("中"), 60)
            await kernel.close()
        finally:
            await provider.close()
        missing = folders == (str(tmp_path),)
        assert note.startswith("none: no font with Chinese") == missing
        assert ("fonts-wqy-microhei" in caplog.text) == missing
        assert ("missing from font" in shown.stderr) == missing
