"""Figures as a session returns them, against those of stock matplotlib in a notebook."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys


import numpy as np
import pytest
from PIL import Image

from deepeyes_plugins.sandbox import (
    EmbeddedServer,
    ExecutionResult,
    SandboxClient,
    SandboxSession,
    SandboxSettings,
    start_server,
)
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
    "lines with legend": "plt.plot(x, np.sin(x), label='sin'); plt.plot(x, np.cos(x), label='cos')\n"
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
    "fig.legend(loc='upper right', bbox_to_anchor=(1.2, 1)); fig.suptitle('above', y=1.05); fig.text(1.1, 0.5, 'far')",
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
    "autolayout": "plt.rcParams['figure.autolayout'] = True; plt.plot(x); plt.ylabel('two\\nlines')",
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
    "wrapped text": "plt.text(0.6, 0.5, 'a text that is far too long for its place ' * 2, wrap=True)",
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
    "without axes": "plt.figure().add_artist(plt.Line2D([0.2, 0.7], [0.3, 0.8]))",
    "hidden axes": "fig, (a, b) = plt.subplots(1, 2); a.plot(x); b.set_visible(False)",
    "sketch": "plt.xkcd(); plt.plot(x)",
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


PLOT = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(); ax.plot([1, 2])\n"


async def sizes(session: SandboxSession, code: str) -> list[tuple[int, int]]:
    result = await session.execute(code, 60)
    assert result.outcome == "ok", result.stderr
    return [decoded(image).size for image in result.images]
