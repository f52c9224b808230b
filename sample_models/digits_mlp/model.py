"""A perceptron with two hidden layers."""

from __future__ import annotations

from torch import nn


def digits_mlp(classes: int = 10, hidden: tuple[int, int] = (256, 128)) -> nn.Module:
    """Build 64 pixels -> 256 -> 128 -> 10 classes."""
    first, second = hidden
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(8 * 8, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, classes),
    )
