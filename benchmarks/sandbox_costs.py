"""What parts of the sandbox cost and give, in CPU time: drawing of figures, and the server process.

The ratio of stock to fast drawing decides whether `kernels/fork/figures.py` is worth its lines; the
server's CPU time per cell says how many cells per second one server process can serve.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import typer
from IPython.core.pylabtools import print_figure
from matplotlib import pyplot
from PIL import Image
from sandboxes.measures import CONCURRENCY, PICTURE_BY_CODE, plot
from sandboxes.pictures import photo

from deepeyes_plugins.sandbox import SandboxClient, start_server
from deepeyes_plugins.sandbox.kernels.fork.figures import figure_png
from deepeyes_plugins.sandbox.kernels.fork.fonts import use_cjk_font
from deepeyes_plugins.sandbox.kernels.fork.shell import Shell
from deepeyes_plugins.sandbox.kernels.output import OutputLimits
from deepeyes_plugins.sandbox.settings import SandboxSettings

FIGURES = {
    "line": "plt.plot(x, np.sin(x), label='sin'); plt.legend(); plt.title(f'wave {n}'); plt.grid()",
    "bar": "plt.bar(['a', 'b', 'c', 'd'], [3, 1, 4, n]); plt.title(f'counts {n}')",
    "scatter": "plt.scatter(x, np.sin(x + n), c=x); plt.colorbar()",
    "imshow": "plt.imshow(crop); plt.title(f'裁剪 {n}')",
    "imshow, no axes": "plt.imshow(crop); plt.axis('off')",
    "3 subplots, CJK titles": "fig, axes = plt.subplots(1, 3, figsize=(12, 4))\n"
    "for k, ax in enumerate(axes): ax.imshow(crop); ax.set_title(f'图像 {k} {n}')\n"
    "plt.suptitle('中文標題'); plt.tight_layout()",
    "2x2 subplots": "fig, axes = plt.subplots(2, 2)\n"
    "for k, ax in enumerate(axes.flat): ax.plot(x**k); ax.set_title(f'power {k} {n}')\n"
    "plt.tight_layout()",
}


def measure_figures(rounds: int) -> None:
    """Print CPU time of stock inline and of the fork kernel for the same figures, taken in turn."""
    settings = SandboxSettings()
    use_cjk_font(settings.font_folders)
    Shell(OutputLimits(8000, 4000, 10, settings.max_image_pixels)).warm()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    crop = Image.open(io.BytesIO(photo(1, 0))).crop((40, 30, 440, 330))
    names = {"plt": pyplot, "np": np, "x": np.linspace(0, 10, 200), "crop": crop}
    drawn: dict[str, Callable[[Any], Any]] = {"stock": print_figure, "fast": figure_png}
    for title, code in FIGURES.items():
        taken: dict[str, list[float]] = {"make": [], "stock": [], "fast": []}
        for n in range(2 * rounds):
            for name, draw in drawn.items():
                pyplot.close("all")
                start = time.process_time()
                exec(code, names | {"n": n})
                made = time.process_time()
                draw(pyplot.gcf())
                taken["make"].append(1000 * (made - start))
                taken[name].append(1000 * (time.process_time() - made))
        make, stock, fast = (statistics.median(samples) for samples in taken.values())
        typer.echo(
            f"{title:24} make {make:5.1f} ms, draw: stock {stock:5.1f} ms, fast {fast:5.1f} ms; "
            f"ratio {stock / fast:4.2f}, of the whole cell {(make + stock) / (make + fast):4.2f}"
        )


async def measure_server(seconds: float) -> None:
    """Print cells per second of busy sessions, and CPU time of the server process per cell."""
    with start_server() as server:
        process = psutil.Process(server.pid)
        async with SandboxClient(server.url, token=server.token) as client:
            sessions = [await client.create_session() for _ in range(CONCURRENCY)]
            await asyncio.gather(*(one.execute(PICTURE_BY_CODE + plot(0), 60) for one in sessions))
            for title, code in (("trivial cell", "print(x + 1)"), ("cell with a plot", plot(1))):
                cells = 0
                start, before = time.perf_counter(), sum(process.cpu_times()[:2])

                async def drive(session: Any, code: str, end: float) -> None:
                    nonlocal cells
                    while time.perf_counter() < end:
                        assert (await session.execute(code, 60)).outcome == "ok"
                        cells += 1

                end = start + seconds
                await asyncio.gather(*(drive(session, code, end) for session in sessions))
                rate = cells / (time.perf_counter() - start)
                cpu = 1000 * (sum(process.cpu_times()[:2]) - before) / cells
                typer.echo(
                    f"{title:24} {rate:5.0f} cells/s here; server {cpu:.2f} ms of CPU time per "
                    f"cell: at most {1000 / cpu:.0f} cells/s in one process"
                )


def main(rounds: int = 8, seconds: float = 5.0) -> None:
    """Measure what the parts cost."""
    asyncio.run(measure_server(seconds))
    measure_figures(rounds)


if __name__ == "__main__":
    typer.run(main)
