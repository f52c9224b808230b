"""LeNet with three input channels, for CIFAR-10: small enough to try every unit out."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet3(nn.Module):
    """Two 5x5 convolutions, each followed by a pooling, then three linear layers."""

    def __init__(self, classes: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.conv1 = nn.Conv2d(3, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(second * 5 * 5, third)
        self.fc2 = nn.Linear(third, fourth)
        self.fc3 = nn.Linear(fourth, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of 3x32x32 images."""
        features = self.pool(self.conv1(images).relu())
        features = self.pool(self.conv2(features).relu()).flatten(1)
        return self.fc3(self.fc2(self.fc1(features).relu()).relu())


def lenet3(classes: int = 10, widths: tuple[int, int, int, int] = (16, 32, 120, 84)) -> nn.Module:
    """Build the network."""
    return LeNet3(classes, widths)
