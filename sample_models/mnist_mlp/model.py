"""The perceptron for MNIST on which contribution ratios were tried out; no layer has biases."""

from __future__ import annotations

from torch import nn


def mnist_mlp(classes: int = 10, hidden: tuple[int, int] = (50, 30)) -> nn.Module:
    """Build 784 pixels -> 50 -> 30 -> 10 classes."""
    first, second = hidden
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, first, bias=False),
        nn.ReLU(),
        nn.Linear(first, second, bias=False),
        nn.ReLU(),
        nn.Linear(second, classes, bias=False),
    )
