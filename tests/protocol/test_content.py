"""Images as bytes, and messages made of them."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepeyes_plugins.protocol.content import (
    EncodedImage,
    ImageError,
    Message,
    encodable,
    fill_placeholders,
    fit_for_model,
)

RED = (255, 0, 0)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return EncodedImage(buffer.getvalue())


def red(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), RED).convert(mode)


def turned(orientation: int) -> EncodedImage:
    """A landscape JPEG file whose EXIF data say how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(red(60, 40), "JPEG", exif=exif)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises ``width`` x ``height`` pixels and brings none."""
    body = b"IHDR" + struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack("!I", 13) + body + struct.pack("!I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"


class TestReading:
    @pytest.mark.parametrize(
        ("format", "media_type"),
        [
            ("PNG", "image/png"),
            ("JPEG", "image/jpeg"),
            ("WEBP", "image/webp"),
            ("GIF", "image/gif"),
        ],
    )
    def test_formats(self, format: str, media_type: str) -> None:
        image = encoded(red(), format)
        assert image.media_type == media_type
        assert image.size == image.pil().size == (60, 40)
        assert image.pil().mode == "RGB"
        assert np.abs(np.asarray(image.pil(), int) - RED).max() <= 3

    def test_a_stereo_photograph_is_a_jpeg_file(self) -> None:
        image = encoded(red(), "MPO", save_all=True, append_images=[red()])
        assert image.media_type == "image/jpeg"
        assert image.pil().size == (60, 40)

    @pytest.mark.parametrize(
        ("mode", "format"), [("P", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGBA", "PNG")]
    )
    def test_modes_become_rgb(self, mode: str, format: str) -> None:
        image = encoded(red(mode=mode), format).pil()
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image, int) - RED).max() <= 3

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_pixels_are_white(self, mode: str) -> None:
        """Not the colour that is hidden under them, which is black in most files."""
        clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert(mode)
        options: dict[str, Any] = {}
        if mode == "P":
            options["transparency"] = clear.getpixel((0, 0))
        assert encoded(clear, **options).pil().getpixel((5, 5)) == (255, 255, 255)

    def test_sixteen_bits_are_scaled(self) -> None:
        """Pillow alone would turn all but the darkest into white."""
        grey = Image.fromarray(np.full((40, 40), 0x8000, np.uint16))
        assert encoded(grey).pil().getpixel((5, 5)) == (128, 128, 128)

    def test_first_frame_of_an_animation(self) -> None:
        frames = [red(), Image.new("RGB", (60, 40), "blue")]
        image = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert image.pil().getpixel((5, 5)) == RED

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_exif_rotation_is_applied(self, orientation: int) -> None:
        image = turned(orientation)
        upright = (40, 60) if orientation in (6, 8) else (60, 40)
        assert image.size == image.pil().size == upright

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\0"]
    )
    def test_broken_exif_data_are_ignored(self, exif: bytes) -> None:
        assert encoded(red(), "JPEG", exif=exif).pil().size == (60, 40)

    def test_a_turned_tiff_file_has_one_size(self) -> None:
        """Pillow swaps the sides of these before it decodes them, of other formats afterwards."""
        exif = Image.Exif()
        exif[0x0112] = 6
        image = encoded(red(60, 40), "TIFF", exif=exif)
        assert image.size == image.pil().size == (40, 60)

    def test_code_gets_other_files_as_they_are(self) -> None:
        opaque = encoded(red(mode="RGBA"))
        for image in (turned(1), encoded(red(mode="P")), opaque):
            assert image.upright() is image

    def test_code_gets_an_upright_image_without_transparent_pixels(self) -> None:
        """``convert("RGB")`` would bring out the black that is stored under them."""
        clear = encoded(Image.new("RGBA", (60, 40), (0, 0, 0, 0)))
        keyed = encoded(Image.new("P", (60, 40)), transparency=0)
        for image in (clear, keyed):
            assert image.upright().open().convert("RGB").getpixel((5, 5)) == (255, 255, 255)
        assert turned(6).upright().open().size == (40, 60)

    def test_a_plain_file_stays_as_it_is(self) -> None:
        for image in (turned(1), encoded(red()), encoded(red(mode="L")), encoded(red(), "WEBP")):
            assert image.plain() is image

    @pytest.mark.parametrize(
        "image",
        [
            turned(6),
            encoded(red(mode="P")),
            encoded(red(mode="1")),
            encoded(Image.new("RGBA", (60, 40), (255, 0, 0, 100))),
            encoded(Image.new("L", (60, 40), 7), transparency=7),
            encoded(Image.new("I;16", (60, 40), 40_000)),
            encoded(red(mode="CMYK"), "JPEG"),
            encoded(red(), "TIFF"),
            encoded(red(), "PPM"),
        ],
    )
    def test_of_others_every_program_decodes_the_same_pixels(self, image: EncodedImage) -> None:
        plain = image.plain()
        with Image.open(io.BytesIO(plain.data)) as decoded:
            assert (decoded.mode, decoded.format) == ("RGB", "PNG")
            assert decoded.tobytes() == image.pil().tobytes()
        assert plain.plain() is plain


class TestRefusing:
    @pytest.mark.parametrize("data", [b"", b"no image", b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF-3.0"])
    @pytest.mark.parametrize(
        "use", [lambda i: i.size, lambda i: i.pil(), lambda i: i.media_type, fit_for_model]
    )
    def test_no_image(self, data: bytes, use: Callable[[EncodedImage], object]) -> None:
        with pytest.raises(ImageError, match="not a readable image"):
            use(EncodedImage(data))

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
    def test_a_file_that_is_cut_short(self, format: str) -> None:
        noise = Image.effect_noise((200, 200), 90).convert("RGB")
        data = encoded(noise, format).data
        for cut in (EncodedImage(data[: len(data) // 2]), EncodedImage(data[:-200])):
            with pytest.raises(ImageError):
                cut.pil()
            with pytest.raises(ImageError):
                fit_for_model(cut)

    @pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (13_400, 13_400)])
    def test_a_decompression_bomb(self, width: int, height: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(ImageError):
                EncodedImage(png_header(width, height)).pil()

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    @pytest.mark.filterwarnings("ignore")
    def test_damage_of_any_kind_is_an_image_error(self, data: st.DataObject) -> None:
        format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]))
        file = bytearray(encoded(red(), format).data)
        for _ in range(data.draw(st.integers(1, 4))):
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
        image = EncodedImage(bytes(file))
        with contextlib.suppress(ImageError):
            assert image.pil().mode == "RGB"


class TestIdentity:
    def test_equal_bytes_are_equal_images(self) -> None:
        assert encoded(red()) == encoded(red())
        assert len({encoded(red()), encoded(red()), encoded(red(9, 9))}) == 2
        assert encoded(red()).sha256 != encoded(red(9, 9)).sha256

    def test_nothing_is_decoded_to_hold_or_name_an_image(self) -> None:
        image = EncodedImage(b"no image")
        assert image == EncodedImage(b"no image")
        assert repr(image) == f"EncodedImage(8 bytes, sha256={image.sha256[:12]})"

    @pytest.mark.parametrize(
        "mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "F", "I", "YCbCr"]
    )
    def test_any_pillow_image_can_be_encoded(self, mode: str) -> None:
        assert EncodedImage.from_pil(red(mode=mode)).size == (60, 40)

    def test_a_pillow_image_is_encoded_upright(self) -> None:
        """Also a copy, which still has the EXIF data of the file."""
        photo = turned(6).open()
        assert EncodedImage.from_pil(photo.copy()).pil().size == (40, 60)
        assert EncodedImage.from_pil(photo).pil().size == (40, 60)


class TestFitForModel:
    def test_an_image_that_fits_is_not_re_encoded(self) -> None:
        image = encoded(red(), "JPEG")
        assert fit_for_model(image) is image

    @pytest.mark.parametrize(
        ("size", "fitted"),
        [
            ((1, 1), (32, 32)),
            ((1, 100), (32, 100)),
            ((31, 40), (32, 40)),
            ((5000, 1), (5000, 32)),
            ((10_000, 2), (6400, 32)),
            ((2, 10_000), (32, 6400)),
            ((8200, 41), (8200, 41)),
            ((8201, 41), (8200, 41)),
        ],
    )
    def test_small_sides_grow_and_long_ones_shrink(
        self, size: tuple[int, int], fitted: tuple[int, int]
    ) -> None:
        assert fit_for_model(encoded(red(*size))).size == fitted

    def test_a_rotated_image_keeps_its_shape(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert fit_for_model(encoded(red(100, 10), "JPEG", exif=exif)).size == (32, 100)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 9000), st.integers(1, 40), st.booleans())
    def test_the_result_always_fits(self, long: int, short: int, upright: bool) -> None:
        image = encoded(red(short, long) if upright else red(long, short))
        width, height = fit_for_model(image).size
        assert min(width, height) >= 32
        assert max(width, height) / min(width, height) <= 200


class TestMessages:
    def test_text_and_images(self) -> None:
        image = encoded(red())
        message = Message("user", ("Look: ", image, "Which colour?"))
        assert message.text == "Look: Which colour?"
        assert message.images == (image,)

    def test_placeholders_are_filled_in_order(self) -> None:
        first, second = encoded(red()), encoded(red(9, 9))
        parts = fill_placeholders("<image>a<image>", [first, second], "<image>")
        assert parts == (first, "a", second)

    def test_text_without_placeholders(self) -> None:
        assert fill_placeholders("a", [], "<image>") == ("a",)
        assert fill_placeholders("", [], "<image>") == ()

    def test_images_left_over_are_for_the_next_message(self) -> None:
        images: Iterator[EncodedImage] = iter([encoded(red()), encoded(red(9, 9))])
        fill_placeholders("<image>", images, "<image>")
        assert fill_placeholders("<image>", images, "<image>") == (encoded(red(9, 9)),)

    def test_a_placeholder_without_image_is_named(self) -> None:
        with pytest.raises(ValueError, match="placeholder 2 of '<image>' has no image"):
            fill_placeholders("<image><image>", [encoded(red())], "<image>")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_ordinary_text_is_encodable_as_it_is(text: str) -> None:
    assert encodable(text) == text
