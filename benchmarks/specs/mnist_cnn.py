"""The small convolutional network for MNIST on which pruning before training was compared."""

from __future__ import annotations

from torch import nn


def mnist_cnn(classes: int = 10, widths: tuple[int, int, int] = (20, 50, 500)) -> nn.Module:
    """Build two convolutions of 5x5, each before a pooling, and two linear layers: 431,080 parameters."""
    first, second, hidden = widths
    return nn.Sequential(
        nn.Conv2d(1, first, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 4 * 4, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
