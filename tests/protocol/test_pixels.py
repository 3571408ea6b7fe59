"""Images of more than 8 bits per channel, palettes and transparency, as a person sees them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from numpy.typing import NDArray
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.pixels import describe_depth, is_8bit, to_8bit, to_rgb

EVERY_MODE = [
    *(
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
    ),
    *("I", "F", "I;16", "I;16L", "I;16B", "I;16N"),
]


def ramp(black: float, white: float, kind: str) -> NDArray[Any]:
    """From black to white in 256 columns."""
    return np.linspace(black, white, 256).astype(kind)[None].repeat(4, axis=0)


def tiff(pixels: NDArray[Any], *, bits: int = 0, photometric: int = 1) -> bytes:
    """An uncompressed TIFF file of one channel, in the byte order and type of ``pixels``."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape
    formats = {"u": 1, "i": 2, "f": 3}
    data = pixels.tobytes()
    tags = {256: width, 257: height, 258: bits or 8 * pixels.itemsize, 259: 1, 262: photometric}
    tags |= {273: 8, 277: 1, 278: height, 279: len(data), 339: formats[pixels.dtype.kind]}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in tags)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8 + len(data)) + data + directory


def png(depth: int, colour: int, row: bytes, transparent: Iterable[int] = ()) -> bytes:
    """A PNG file of two pixels in one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
        )

    header = struct.pack("!IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    key = b"".join(struct.pack("!H", value) for value in transparent)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tRNS", key) if key else b"",
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        )
    )


def netpbm(pixels: NDArray[Any], maximum: int) -> bytes:
    kind = "P5" if pixels.ndim == 2 else "P6"
    height, width = pixels.shape[:2]
    return f"{kind} {width} {height} {maximum}\n".encode() + pixels.astype(">u2").tobytes()


def pillow_png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "png, 16 bits": (pillow_png(ramp(0, 65535, "u2")), "16-bit channels, scaled to 8-bit"),
    "pgm, 16 bits": (netpbm(ramp(0, 65535, "u2"), 65535), "16-bit channels, scaled to 8-bit"),
    "pgm, 10 bits": (netpbm(ramp(0, 1023, "u2"), 1023), "16-bit channels, scaled to 8-bit"),
    "ppm, 10 bits": (
        netpbm(ramp(0, 1023, "u2")[..., None].repeat(3, axis=2), 1023),
        "16-bit channels, scaled to 8-bit",
    ),
    "uint16": (tiff(ramp(0, 65535, "<u2")), "16-bit channels, scaled to 8-bit"),
    "uint16, big endian": (tiff(ramp(0, 65535, ">u2")), "16-bit channels, scaled to 8-bit"),
    "int16": (tiff(ramp(-32768, 32767, "<i2")), "16-bit channels, scaled to 8-bit"),
    "int16 without negative values": (tiff(ramp(0, 32767, "<i2")), "16-bit channels"),
    "uint32": (tiff(ramp(0, 2**32 - 1, "<u4")), "32-bit integers, scaled to 8-bit"),
    "int32": (tiff(ramp(-(2**31), 2**31 - 1, "<i4")), "32-bit integers, scaled to 8-bit"),
    "int32 of 31 bits": (tiff(ramp(0, 2**31 - 1, ">i4")), "32-bit integers, scaled to 8-bit"),
    "int32 of 24 bits": (tiff(ramp(0, 2**24 - 1, "<i4")), "32-bit integers, scaled to 8-bit"),
    "int32 of 16 bits": (tiff(ramp(0, 65535, "<i4")), "32-bit integers, scaled to 8-bit"),
    "int32 of 8 bits": (tiff(ramp(0, 255, "<i4")), "32-bit integers, scaled to 8-bit"),
    "differences": (tiff(ramp(-256, 255, "<i4")), "32-bit integers, scaled to 8-bit"),
    "floats within 0 and 1": (tiff(ramp(0, 1, "<f4")), "floats, scaled to 8-bit"),
    "floats of 8 bits": (tiff(ramp(0, 255, "<f4")), "floats, scaled to 8-bit"),
    "floats of 16 bits": (tiff(ramp(0, 65535, ">f4")), "floats, scaled to 8-bit"),
    "floats around 0": (tiff(ramp(-1, 1, "<f4")), "floats, scaled to 8-bit"),
    "great floats": (tiff(ramp(-3e38, 3e38, "<f4")), "floats, scaled to 8-bit"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_ramp_from_black_to_white_is_one_in_every_format(name: str) -> None:
    """Pillow alone makes a white image of most of them."""
    data, described = FILES[name]
    image = EncodedImage(data)
    levels = np.asarray(image.pil())[..., 0].astype(int)
    assert np.abs(levels[0] - np.arange(256)).max() <= 1
    assert levels.mean() == pytest.approx(127.5, abs=0.6)
    assert describe_depth(image.open()).startswith(described)


def test_half_of_the_range_is_grey() -> None:
    for kind, half in (("<u2", 1 << 15), ("<u4", 1 << 31), ("<f4", 0.5)):
        flat = np.full((4, 4), half, kind)
        assert EncodedImage(tiff(flat)).pil().getpixel((0, 0)) == (128, 128, 128)


def test_dark_images_stay_dark() -> None:
    """The range is the format's, not the image's."""
    for data in (pillow_png(ramp(0, 1000, "u2")), netpbm(ramp(0, 200, "u2"), 65535)):
        assert np.asarray(EncodedImage(data).pil()).max() <= 3


def test_white_may_be_zero() -> None:
    for pixels in (ramp(0, 65535, "<u2"), ramp(0, 1, "<f4")):
        image = EncodedImage(tiff(pixels, photometric=0)).pil()
        assert (image.getpixel((0, 0)), image.getpixel((255, 0))) == ((255,) * 3, (0,) * 3)


def test_twelve_bits_have_a_range_of_their_own() -> None:
    packed = np.frombuffer(bytes([0x00, 0x0F, 0xFF] * 4), np.uint8).reshape(4, 3)
    data = bytearray(tiff(packed, bits=12))
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 2))
    image = EncodedImage(bytes(data))
    assert describe_depth(image.open()) == "12-bit channels, scaled to 8-bit"
    assert [image.pil().getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_what_is_no_number_is_white() -> None:
    pixels = ramp(0, 50, "<f4")
    pixels[0, :3] = np.nan, np.inf, -np.inf
    levels = np.asarray(to_8bit(Image.fromarray(pixels)))
    assert levels[0, :4].tolist() == [255, 255, 255, 3]
    assert levels[1, :4].tolist() == [0, 1, 2, 3]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert set(to_8bit(Image.fromarray(nothing)).getdata()) == {255}


def test_one_value_counts_on_the_scale_of_8_bits() -> None:
    assert to_8bit(Image.new("F", (2, 2), 128)).getpixel((0, 0)) == 128
    assert to_8bit(Image.new("F", (2, 2), 900)).getpixel((0, 0)) == 255


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_every_mode_becomes_8_bit_rgb(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    before = image.tobytes()
    assert is_8bit(to_8bit(image))
    assert to_rgb(image).mode == "RGB"
    assert (image.mode, image.tobytes()) == (mode, before)
    if is_8bit(image):
        assert to_8bit(image) is image


@pytest.mark.parametrize(
    "data",
    [
        png(16, 0, struct.pack("!HH", 40_000, 0), [40_000]),
        png(16, 2, struct.pack("!HHHHHH", 40_000, 9, 65535, 0, 0, 0), [40_000, 9, 65535]),
        png(8, 0, bytes([77, 0]), [77]),
        png(8, 2, bytes([200, 1, 2, 0, 0, 0]), [200, 1, 2]),
        png(4, 0, bytes([0x30]), [3]),
        png(2, 0, bytes([0b10_00_0000]), [2]),
        png(1, 0, bytes([0b10_000000]), [1]),
        png(16, 4, struct.pack("!HHHH", 40_000, 0, 0, 65535)),
        png(16, 6, struct.pack("!HHHHHHHH", 40_000, 1, 2, 0, 0, 0, 0, 65535)),
    ],
    ids=["grey 16", "rgb 16", "grey 8", "rgb 8", "grey 4", "grey 2", "grey 1", "la 16", "rgba 16"],
)
def test_a_transparent_colour_is_white_at_any_depth(data: bytes) -> None:
    """The file names the colour at its own depth, which Pillow does not scale."""
    image = EncodedImage(data).pil()
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def stock_display(image: Image.Image) -> NDArray[Any]:
    """What a notebook shows of an image: its PNG file, 16 bits read as a browser shows them."""
    bundle, _ = DisplayFormatter().format(image, include={"image/png"})
    shown = Image.open(io.BytesIO(bundle["image/png"]))
    if shown.mode.startswith("I"):
        return np.asarray(shown).astype(int)[..., None].repeat(3, axis=2) // 257
    return np.asarray(shown.convert("RGB")).astype(int)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16", "I;16B", "I"])
@pytest.mark.filterwarnings("ignore:Saving I mode images")
def test_images_look_as_in_a_notebook(mode: str) -> None:
    wheel = Image.merge("HSV", [Image.linear_gradient("L"), *[Image.new("L", (256, 256), 200)] * 2])
    deep = np.asarray(Image.linear_gradient("L").rotate(90)).astype(np.uint16) * 257
    images = {
        "I;16": Image.fromarray(deep),
        "I;16B": Image.fromarray(deep.astype(">u2")),
        "I": Image.fromarray(deep.astype(np.int32)),
    }
    image = images.get(mode) or wheel.convert("RGB").convert(mode)
    difference = stock_display(image) - np.asarray(to_rgb(image), int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("black", "white"), [(-1, 1), (0, 255), (40, 99), (0, 5000)])
def test_floats_look_as_in_a_figure(black: float, white: float) -> None:
    pixels = ramp(black, white, "f4")
    pixels[2, 7] = np.nan
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.ma.masked_invalid(pixels), cmap="gray", format="png")
    drawn = EncodedImage(buffer.getvalue()).pil()
    difference = np.asarray(drawn, int) - np.asarray(to_rgb(Image.fromarray(pixels)), int)
    assert np.abs(difference).max() <= 1


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_integers_keep_their_order_and_fit(values: list[int]) -> None:
    levels = list(to_8bit(Image.fromarray(np.array([values], np.int32))).getdata())
    ordered = [level for _, level in sorted(zip(values, levels, strict=True))]
    assert ordered == sorted(levels)
    if min(values) >= 0 and max(values) < 256:
        assert levels == values


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_floats_keep_their_order(values: list[float]) -> None:
    levels = to_8bit(Image.fromarray(np.array([values], np.float32))).getdata()
    finite = [pair for pair in zip(values, levels, strict=True) if np.isfinite(pair[0])]
    assert [level for _, level in sorted(finite)] == sorted(level for _, level in finite)
