"""All 50,000 training images of CIFAR-10, joined from the three files that hold them.

As a source of data: `--train-data benchmarks/cifar/whole.py:train`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

DATA = Path(os.environ.get("PRUNECLI_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


def train() -> TensorDataset:
    """Return images [50000, 3, 32, 32] in bytes and their labels, in their original order."""
    images = np.empty((50_000, 3, 32, 32), np.uint8)
    labels = np.empty(50_000, np.int64)
    for name in ("cifar10_train10k", "cifar10_train_rest_a", "cifar10_train_rest_b"):
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as part:
            index = part["index"]
            images[index] = part["images"] if "images" in part.files else decode(part["residual"])
            labels[index] = part["labels"]
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))


def decode(residual: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels: sums along both sides, then red and blue as they differ from green; all mod 256.

    >>> decode(np.array([1, 2, 255], np.uint8).reshape(1, 3, 1, 1)).ravel().tolist()
    [3, 2, 1]
    """
    pixels = np.cumsum(np.cumsum(residual, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    return pixels
