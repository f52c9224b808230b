"""Write digits.npz: the 8x8 handwritten digits that scikit-learn ships, with a fixed split.

Run as `python -m sample_models.make_digits` (needs scikit-learn, which is in the `dev` extra).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

PATH = Path(__file__).with_name("digits.npz")
TEST_IMAGES = 600


def make_digits() -> None:
    """Write uint8 images (N, 1, 8, 8) in 0..255 and their labels, split by class with seed 0."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # the original counts are 0..16
    labels = digits.target.astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    np.savez_compressed(
        PATH,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


if __name__ == "__main__":
    make_digits()
