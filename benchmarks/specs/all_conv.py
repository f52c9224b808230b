"""Five convolutions with batch norms, a mean and a classifier."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

HALVING = (1, 3)
"""Which of the convolutions halve the picture."""


def all_conv(classes: int = 10, widths: tuple[int, ...] = (16, 32, 32, 64, 64)) -> nn.Module:
    """Build the network; 7.5 million multiply-accumulates for a picture of 3x32x32."""
    layers: list[nn.Module] = []
    for number, (taken, made) in enumerate(pairwise((3, *widths))):
        stride = 2 if number in HALVING else 1
        layers += [
            nn.Conv2d(taken, made, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
