"""A small convolutional network for CIFAR whose linear layers hold nearly all of its parameters."""

from __future__ import annotations

from torch import nn


def small_cnn(
    classes: int = 10, channels: tuple[int, int] = (16, 32), hidden: tuple[int, int] = (256, 128)
) -> nn.Module:
    """Build conv 3-16-32, each with ReLU and pooling, then 2048 -> 256 -> 128 -> classes without biases."""
    (first, second), (third, fourth) = channels, hidden
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 8 * 8, third, bias=False),
        nn.ReLU(),
        nn.Linear(third, fourth, bias=False),
        nn.ReLU(),
        nn.Linear(fourth, classes, bias=False),
    )
