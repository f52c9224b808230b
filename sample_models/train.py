"""The training that the sample models share: digits.npz -> the parameters of one network.

Everything is drawn from seed 0 on one CPU thread, so that a rerun gives the same network. The loop is
written out, without prunecli, so that the samples show what a user's own project looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

DIGITS = Path(__file__).with_name("digits.npz")
MEAN, STD = 0.3, 0.37  # of the training images, as in each model.toml


def train_on_digits(
    factory: Callable[[], nn.Module],
    weight_decay: float,
    peak_rate: float = 0.05,
    epochs: int = 40,
    shifted: bool = True,
) -> nn.Module:
    """Build a network and train it with SGD under a one-cycle learning rate; print its test accuracy.

    Args:
        factory: builds the network, with random parameters.
        weight_decay: strong, so that units the network can do without become small.
        peak_rate: the highest learning rate.
        epochs: how often each training image is seen.
        shifted: move each batch by up to one pixel, which teaches convolutions but confuses a perceptron.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = factory()
    images, labels = read_digits("train")
    batch = 64
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=peak_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for chosen in order.split(batch)[: len(images) // batch]:
            optimizer.zero_grad()
            inputs = shift(images[chosen]) if shifted else images[chosen]
            cross_entropy(model(inputs), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    print(f"test accuracy: {accuracy(model):.2%}")
    return model


def read_digits(part: str) -> tuple[Tensor, Tensor]:
    """Return the normalised images and the labels of one part, `train` or `test`."""
    with np.load(DIGITS) as digits:
        images = torch.from_numpy(digits[f"{part}_images"]).float() / 255
        labels = torch.from_numpy(digits[f"{part}_labels"]).long()
    return (images - MEAN) / STD, labels


def shift(images: Tensor) -> Tensor:
    """Move a batch by up to one pixel in each direction; what enters is background."""
    down, right = (int(step) for step in torch.randint(0, 3, (2,)))
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-MEAN / STD)
    return padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of the test images that the model labels correctly."""
    images, labels = read_digits("test")
    return (model(images).argmax(1) == labels).double().mean().item()
