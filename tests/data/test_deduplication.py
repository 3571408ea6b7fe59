"""Rows that training and validation share are found among any number of rows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from deepeyes_plugins.data.check.deduplication import Hashes, leaks


def hashes(name: str, seed: int, rows: int, shared: int) -> Hashes:
    """Rows of two images, of which the second of the first ``shared`` rows is known elsewhere."""
    numbers = np.random.default_rng(seed).integers(1 << 32, 1 << 63, (rows, 3)).astype(np.uint64)
    numbers[:shared, 2] = np.arange(shared)
    return Hashes(
        files=[Path(name)],
        ends=[rows],
        rows=np.arange(1, rows + 1, dtype=np.uint32),
        pairs=numbers[:, 0],
        counts=np.full(rows, 2, np.uint16),
        images=numbers[:, 1:].reshape(-1),
    )


def test_many_shared_images_take_no_longer_than_few() -> None:
    train, validation = hashes("train", 1, 50_000, 1000), hashes("val", 2, 50_000, 1000)
    began = time.monotonic()

    found = list(leaks(train, validation))

    assert time.monotonic() - began < 3
    assert [row for _, row, _ in found] == list(range(1, 1001))
    assert "the validation data have image 2 too, row 8 of val" in found[7][2].reason
