"""Measures what the model's own view of a picture gives away.

A task needs its tools only if its answer cannot be read without them. The probe trains a small
convolutional network to name the framed colour, once from the view of the whole picture and once
from the view of the right crop, both exactly as the checkpoint's image processor makes them. The
first accuracy should be near chance, the second near one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessor

from deepeyes_plugins.quickstart.task import (
    COLOURS,
    PICTURE_SIDE,
    Example,
    cell_box,
    crop_box,
)

_BATCH = 64
_VIEWS = 16
_EPOCHS = 8


@dataclass(frozen=True)
class Leakage:
    """Accuracy of the probe on pictures that it was not trained on, from 0 to 1.

    Attributes:
        whole_picture: Reading the framed cell in the view of the whole picture.
        right_crop: Reading the view of the crop around the framed dot.
    """

    whole_picture: float
    right_crop: float


def load_image_processor(checkpoint: Path) -> Qwen2VLImageProcessor:
    """Loads the image processor of a checkpoint."""
    return Qwen2VLImageProcessor.from_pretrained(checkpoint)


def measure_leakage(
    image_processor: Qwen2VLImageProcessor,
    examples: Iterable[Example],
    heldout: Iterable[Example],
    *,
    seed: int = 0,
) -> Leakage:
    """Trains the probe on `examples` and measures it on `heldout`.

    Args:
        image_processor: The processor of the checkpoint in question.
        examples: What the probe learns from; a few thousand make the result meaningful.
        heldout: What it is measured on.
        seed: Seed of the probe's weights and of the order of its training.
    """
    with _one_thread():
        train, test = (_views(image_processor, group) for group in (examples, heldout))
        accuracies = [
            probe_accuracy((train[view], train[-1]), (test[view], test[-1]), seed=seed)
            for view in range(2)
        ]
    return Leakage(*accuracies)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: tensors this small gain nothing from more, which wait by spinning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _views(
    image_processor: Qwen2VLImageProcessor, examples: Iterable[Example]
) -> tuple[Tensor, Tensor, Tensor]:
    """Framed cells, right crops and colours; the pictures themselves are not kept."""
    rest = iter(examples)
    parts = []
    while batch := list(islice(rest, _VIEWS)):
        crops = [one.picture.crop(crop_box(one.framed_cell)) for one in batch]
        labels = torch.tensor([list(COLOURS).index(one.answer) for one in batch])
        cells = framed_cell_views(image_processor, batch)
        parts.append((cells, model_views(image_processor, crops), labels))
    cells, views, colours = zip(*parts, strict=True)
    return torch.cat(cells), torch.cat(views), torch.cat(colours)


def framed_cell_views(
    image_processor: Qwen2VLImageProcessor, examples: Sequence[Example]
) -> Tensor:
    """Returns the framed cells as the model sees them in the whole pictures.

    Returns:
        Normalised pixels of shape (examples, 3, height, width).
    """
    views = model_views(image_processor, [example.picture for example in examples])
    height, width = views.shape[2:]
    cells = []
    for view, example in zip(views, examples, strict=True):
        left, upper, right, lower = cell_box(example.framed_cell)
        rows = slice(upper * height // PICTURE_SIDE, lower * height // PICTURE_SIDE)
        columns = slice(left * width // PICTURE_SIDE, right * width // PICTURE_SIDE)
        cells.append(view[:, rows, columns])
    return torch.stack(cells)


def model_views(image_processor: Qwen2VLImageProcessor, images: Sequence[Image.Image]) -> Tensor:
    """Returns the pixels that the vision tower receives, put back in their places.

    Args:
        image_processor: The processor of the checkpoint in question.
        images: Images of one size.

    Returns:
        Normalised pixels of shape (images, 3, height, width).
    """
    inputs = image_processor(images=list(images), return_tensors="pt")
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    merge, patch = image_processor.merge_size, image_processor.patch_size
    # The processor lists patches block by block of merge x merge, each as (channel, time, y, x).
    patches = inputs["pixel_values"].reshape(
        len(images), rows // merge, columns // merge, merge, merge, 3, -1, patch, patch
    )[..., 0, :, :]
    return patches.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(
        len(images), 3, rows * patch, columns * patch
    )


def probe_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, seed: int = 0
) -> float:
    """Trains a small convolutional classifier and returns its accuracy on `test`.

    Args:
        train: Views of shape (n, 3, height, width) and class indices of shape (n,).
        test: The same for the views to be classified.
        seed: Seed of the weights and of the order of training.
    """
    views, labels = train
    # Gradients are asked for, since a framework in the same process may have switched them off.
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(int(labels.max()) + 1),
        )
        network(views[:1])
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(views)).split(_BATCH):
                loss = nn.functional.cross_entropy(network(views[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        return float((network(test[0]).argmax(dim=1) == test[1]).float().mean())
