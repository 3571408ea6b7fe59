"""Images on their way into a session and out of it."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from deepeyes_plugins.protocol.pixels import to_8bit
from deepeyes_plugins.sandbox import SandboxClient, SandboxError, SandboxSession
from deepeyes_plugins.sandbox.kernels.fork.images import encode_png

from .conftest import decoded, encoded, gradient, png


def same(one: Image.Image, two: Image.Image) -> bool:
    return (
        one.size == two.size
        and not ImageChops.difference(one.convert("RGB"), two.convert("RGB")).getbbox()
    )


async def test_images_are_there_before_the_first_cell(client: SandboxClient) -> None:
    first, second = gradient(40, 30), gradient(20, 60)
    async with await client.create_session([png(first), encoded(second, "BMP")]) as session:
        result = await session.execute("print(image_1.format, image_2.size)\nimage_1", timeout=10)
    assert result.stdout == "PNG (20, 60)\n"
    assert same(decoded(result.images[0]), first)


async def test_a_crop_as_last_expression_is_returned(client: SandboxClient) -> None:
    image = gradient()
    async with await client.create_session([png(image)]) as session:
        result = await session.execute("image_1.crop((8, 4, 40, 36))", timeout=10)
    assert result.outcome == "ok" and len(result.images) == 1
    assert same(decoded(result.images[0]), image.crop((8, 4, 40, 36)))


@pytest.mark.parametrize(
    ("show", "missing"),
    [
        ("display(image.crop((10, 10, 10, 20)))", "0 x 10 pixels, it has no width"),
        ("image.crop((10, 10, 20, 10)).show()", "10 x 0 pixels, it has no height"),
        ("image.crop((10, 10, 10, 20))", "it has no width"),
        ("plt.imshow(image.crop((10, 10, 10, 20)))", "it has no width"),
        ("plt.gca().imshow(np.array(image)[5:5])", "it has no height"),
    ],
)
async def test_an_empty_image_is_told_in_words(
    session: SandboxSession, show: str, missing: str
) -> None:
    start = "import numpy as np, matplotlib.pyplot as plt\nfrom PIL import Image\n"
    code = f"{start}image = Image.new('RGB', (30, 30))\n{show}"
    result = await session.execute(code, timeout=20)
    assert "the image is empty: " in result.stderr and missing in result.stderr


async def test_displayed_data_that_is_no_image_is_told(session: SandboxSession) -> None:
    code = "from IPython import display as d\nd.display(d.Image(data=b'xx', format='png'))"
    result = await session.execute(code, timeout=10)
    assert result.stderr == "displayed data is not a readable image\n"


RAMP = np.linspace(0, 1, 256)[None].repeat(8, 0)
DEEP = {
    "I;16": Image.fromarray((RAMP * 65535).astype(np.uint16)),
    "I": Image.fromarray((RAMP * 65535).astype(np.int32)),
    "F": Image.fromarray(RAMP.astype(np.float32)),
}


@pytest.mark.parametrize(
    ("mode", "arrives"),
    [
        *((mode, mode) for mode in ("L", "LA", "RGB", "RGBA")),
        *(("P", "RGB"), ("1", "L"), ("CMYK", "RGB"), ("I;16", "L"), ("I", "L"), ("F", "L")),
    ],
)
async def test_every_mode_arrives_as_it_looks(
    client: SandboxClient, mode: str, arrives: str
) -> None:
    """In 8 bits, so that arrays hold colours and resizing works; what has them is unchanged."""
    image = DEEP[mode] if mode in DEEP else gradient().convert(mode)
    file = encoded(image, "TIFF" if mode in (*DEEP, "CMYK") else "PNG")
    async with await client.create_session([file]) as session:
        result = await session.execute(
            "from hashlib import md5\n"
            "(image_1.mode, image_1.size, md5(image_1.tobytes()).hexdigest())",
            timeout=10,
        )
        shown = await session.execute("image_1", timeout=10)
    seen = to_8bit(image)
    expected = (arrives, image.size, hashlib.md5(seen.tobytes()).hexdigest())
    assert result.result == repr(expected)
    assert same(decoded(shown.images[0]), seen)


async def test_displayed_images_of_more_bits_keep_their_range(session: SandboxSession) -> None:
    """A ramp from black to white is one, not white with a thin dark edge."""
    result = await session.execute(
        "import numpy as np\nfrom PIL import Image\n"
        "ramp = np.linspace(0, 1, 256)[None].repeat(8, 0)\n"
        "for pixels in ((ramp * 65535).astype('u2'), (ramp * 65535).astype('i4'), ramp):\n"
        "    display(Image.fromarray(pixels))",
        timeout=10,
    )
    shown = [np.asarray(decoded(image).convert("L")) for image in result.images]
    assert [pixels.mean() for pixels in shown] == pytest.approx([127.5] * 3, abs=1)
    assert [(pixels.min(), pixels.max()) for pixels in shown] == [(0, 255)] * 3


async def test_metadata_such_as_orientation_survives(client: SandboxClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(gradient(40, 30), "JPEG", exif=exif)
    async with await client.create_session([photo]) as session:
        result = await session.execute(
            "from PIL import ImageOps\n(image_1.format, ImageOps.exif_transpose(image_1).size)",
            timeout=10,
        )
    assert result.result == "('JPEG', (30, 40))"


async def test_one_session_cannot_paint_on_anothers_image(client: SandboxClient) -> None:
    image = png(gradient())
    async with (
        await client.create_session([image]) as one,
        await client.create_session([image]) as two,
    ):
        painted = await one.execute(
            "from PIL import ImageDraw\nImageDraw.Draw(image_1).rectangle((0, 0, 9, 9), 'red')\n"
            "image_1.putpixel((20, 20), (1, 2, 3))\nimage_1.getpixel((5, 5))",
            timeout=10,
        )
        assert painted.result == "(255, 0, 0)"
        assert (await two.execute("image_1.getpixel((5, 5))", 10)).result == "(5, 5, 25)"


async def test_numpy_sees_the_pixels(client: SandboxClient) -> None:
    async with await client.create_session([png(gradient(6, 4))]) as session:
        result = await session.execute(
            "import numpy as np\na = np.array(image_1); a.shape, a[3, 5].tolist()", timeout=10
        )
    assert result.result == "((4, 6, 3), [5, 3, 15])"


async def test_sixteen_sessions_share_one_upload(client: SandboxClient) -> None:
    image = png(gradient(200, 200))

    async def size() -> str:
        async with await client.create_session([image, image]) as session:
            return (await session.execute("image_2.size", timeout=30)).result

    assert set(await asyncio.gather(*(size() for _ in range(16)))) == {"(200, 200)"}


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", png(gradient())[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    ids=["empty", "text", "truncated", "postscript"],
)
async def test_what_is_no_image_is_refused(client: SandboxClient, data: bytes) -> None:
    with pytest.raises(SandboxError, match="not a readable image"):
        await client.create_session([data])


async def test_display_show_and_last_expression_all_return_images(session: SandboxSession) -> None:
    result = await session.execute(
        "from PIL import Image\n"
        "display(Image.new('RGB', (10, 10), 'red'))\n"
        "display(Image.new('L', (20, 20)), 'and text')\n"
        "Image.new('RGBA', (30, 30))",
        timeout=10,
    )
    assert [decoded(image).size for image in result.images] == [(10, 10), (20, 20), (30, 30)]
    assert "and text" in result.stdout


async def test_too_many_images_are_cut_and_that_is_said(session: SandboxSession) -> None:
    result = await session.execute(
        "from PIL import Image\nfor n in range(5): display(Image.new('L', (8, 8)))", timeout=10
    )
    assert len(result.images) == 3 and "2 images cut" in result.stderr


async def test_a_displayed_jpeg_comes_back_as_png(session: SandboxSession) -> None:
    result = await session.execute(
        "import io\nfrom PIL import Image\nfrom IPython import display as d\n"
        "file = io.BytesIO(); Image.new('RGB', (9, 9), 'blue').save(file, 'JPEG')\n"
        "d.display(d.Image(data=file.getvalue()))",
        timeout=10,
    )
    assert [decoded(image).format for image in result.images] == ["PNG"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_the_png_encoder_agrees_with_pillow(mode: str) -> None:
    image = gradient(37, 23).convert(mode)
    assert same(decoded(encode_png(image)), image)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_drawings_are_compressed_and_photos_are_stored() -> None:
    drawing = Image.new("RGB", (2000, 1500), "white")
    ImageDraw.Draw(drawing).ellipse((300, 200, 900, 1200), "red", "black", 9)
    assert len(encode_png(drawing)) < 200_000
    photo = noise(800, 600)
    assert len(encode_png(photo)) == pytest.approx(3 * 800 * 600, rel=0.01)
    for image in (drawing, photo):
        assert same(decoded(encode_png(image)), image)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 900), (900, 1), (70_000, 2), (3, 70_000), (2500, 2500)]
)
def test_the_png_encoder_takes_every_shape(size: tuple[int, int]) -> None:
    for image in (noise(*size), Image.new("L", size, 7)):
        assert same(decoded(encode_png(image)), image)


async def test_an_image_as_last_expression_comes_without_its_repr(client: SandboxClient) -> None:
    async with await client.create_session([]) as session:
        result = await session.execute(
            "from PIL import Image\nImage.new('RGB', (40, 40))", timeout=20
        )
    assert (len(result.images), result.result, result.stdout) == (1, "", "")
