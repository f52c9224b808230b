"""A plain convolutional network with batch normalisation, flattened into its classifier."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Four conv-BN-ReLU layers, two of them before a pooling, then two linear layers."""

    def __init__(self, classes: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.features = nn.Sequential(
            *conv_bn(1, first),
            *conv_bn(first, second),
            nn.MaxPool2d(2),
            *conv_bn(second, third),
            *conv_bn(third, fourth),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(fourth * 2 * 2, 64)
        self.classifier = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of 1x8x8 images."""
        features = self.features(images).flatten(1)
        return self.classifier(self.hidden(features).relu())


def digits_cnn(classes: int = 10, widths: tuple[int, int, int, int] = (32, 32, 64, 64)) -> nn.Module:
    """Build the network."""
    return DigitsCNN(classes, widths)


def conv_bn(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a 3x3 convolution that keeps the size, its normalisation, and a ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
