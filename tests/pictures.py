"""Image files of every kind of which programs make different pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def chart() -> Image.Image:
    """Thin lines on white: scaled by nearest pixel, some of them are lost."""
    image = Image.new("RGB", (350, 250), "white")
    draw = ImageDraw.Draw(image)
    for at, colour in enumerate(("red", "green", "blue", "black") * 10):
        draw.line((0, 6 * at, 349, 6 * at + 45), colour)
        draw.line((9 * at, 0, 9 * at + 3, 249), colour)
    return image


def unusual_pictures(folder: Path) -> list[Path]:
    """Write one file of every kind; the second stands upright, turned by its EXIF data."""
    noise = Image.effect_noise((350, 250), 90)
    colours = Image.merge("RGB", [noise, noise.rotate(90, expand=False), noise.transpose(0)])
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = colours.convert("RGBA")
    clear.putalpha(noise)
    levels = np.asarray(noise) / 255
    deep = Image.fromarray((levels * 65535).astype(np.uint16))
    frames = [colours.quantize(8), Image.new("RGB", (350, 250)).quantize(8)]
    writers = {
        "plain.png": lambda path: colours.save(path),
        "turned.jpg": lambda path: colours.save(path, exif=turned),
        "turned.tif": lambda path: colours.save(path, exif=turned),
        "turned.png": lambda path: chart().quantize(8).save(path, exif=turned),
        "cmyk.jpg": lambda path: colours.convert("CMYK").save(path),
        "chart.png": lambda path: chart().quantize(8).save(path),
        "clear_chart.png": lambda path: chart().quantize(8).save(path, transparency=0),
        "one_bit.png": lambda path: chart().convert("1").save(path),
        "clear.png": lambda path: clear.save(path),
        "clear_grey.png": lambda path: clear.convert("LA").save(path),
        "clear.webp": lambda path: clear.save(path, lossless=True),
        "deep.png": lambda path: deep.save(path),
        "deep.tif": lambda path: deep.save(path, compression="tiff_lzw"),
        "integers.tif": lambda path: Image.fromarray((levels * (2**31 - 1)).astype(np.int32)).save(
            path
        ),
        "floats.tif": lambda path: Image.fromarray(levels.astype(np.float32)).save(path),
        "animated.gif": lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]),
        "thin.png": lambda path: Image.new("RGB", (3, 3000), "blue").save(path),
        "tiny.png": lambda path: Image.new("L", (1, 1), 9).save(path),
    }
    for name, write in writers.items():
        write(folder / name)
    return [folder / name for name in writers]
