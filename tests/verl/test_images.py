"""Images for the model: decoded once, off the event loop, within a bounded memory."""

from __future__ import annotations

import asyncio
import threading

import pytest
from PIL import Image

from deepeyes_plugins.hosts.transformers.images import ImageBounds, model_image
from deepeyes_plugins.hosts.verl import images as module
from deepeyes_plugins.hosts.verl.images import ModelImages
from deepeyes_plugins.protocol.content import EncodedImage, ImageError
from tests.verl.conftest import picture

BOUNDS = ImageBounds(28, 56**2, 1280 * 28**2)
ONE_IMAGE = 4 * 112 * 112


class Decoding:
    """Counts what is decoded, and can hold it up."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, image: EncodedImage, bounds: ImageBounds) -> Image.Image:
        self.started.append(image.sha256)
        assert self.may_end.wait(10)
        return model_image(image, bounds)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    counted = Decoding()
    monkeypatch.setattr(module, "model_image", counted)
    return counted


async def test_sixteen_rollouts_that_begin_together_decode_an_image_once(
    decoding: Decoding,
) -> None:
    decoding.may_end.clear()
    images = ModelImages()
    # Every rollout has bytes of its own.
    waiting = [asyncio.create_task(images.get([picture(112, 112)], BOUNDS)) for _ in range(16)]
    while not decoding.started:
        await asyncio.sleep(0)
    decoding.may_end.set()
    found = [image for [image] in await asyncio.gather(*waiting)]
    assert len(decoding.started) == 1
    assert all(image is found[0] for image in found)


async def test_a_cancelled_rollout_does_not_take_the_image_from_the_others(
    decoding: Decoding,
) -> None:
    decoding.may_end.clear()
    images = ModelImages()
    first, second = (asyncio.create_task(images.get([picture()], BOUNDS)) for _ in range(2))
    while not decoding.started:
        await asyncio.sleep(0)
    first.cancel()
    decoding.may_end.set()
    assert len(await second) == 1
    assert first.cancelled() or first.cancelling()


async def test_the_least_recently_used_images_leave_when_the_memory_is_full(
    decoding: Decoding,
) -> None:
    images = ModelImages(cache_bytes=2 * ONE_IMAGE)
    red, green, blue = (picture(112, 112, colour) for colour in ("red", "green", "blue"))
    for image in (red, green, red, blue, red, green):
        await images.get([image], BOUNDS)
    assert decoding.started == [image.sha256 for image in (red, green, blue, green)]


async def test_images_come_in_order(decoding: Decoding) -> None:
    pictures = [picture(112, 112, colour) for colour in ("red", "green", "blue", "red")]
    found = await ModelImages().get(pictures, BOUNDS)
    assert [image.getpixel((0, 0)) for image in found] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 0, 0),
    ]


async def test_a_broken_image_fails_whoever_wants_it_and_nobody_else() -> None:
    images = ModelImages()
    broken = EncodedImage(b"no image")
    with pytest.raises(ImageError, match="not a readable image"):
        await images.get([broken], BOUNDS)
    with pytest.raises(ImageError):
        await images.get([picture(), broken], BOUNDS)
    assert len(await images.get([picture()], BOUNDS)) == 1
