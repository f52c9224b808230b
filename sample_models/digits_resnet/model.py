"""A small residual network: three stages of two blocks, with projection shortcuts between stages."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Two conv-BN layers and a shortcut; the shortcut is a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the residual and the shortcut, rectified."""
        residual = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (residual + self.shortcut(x)).relu()


class DigitsResNet(nn.Module):
    """A stem, one stage of blocks per width, a mean over the image, a classifier."""

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        for inputs, outputs in zip((widths[0], *widths), widths, strict=False):
            stride = 1 if not stages else 2
            stages.append(nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1)))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of 1x8x8 images."""
        features = self.stages(self.bn1(self.conv1(images)).relu())
        return self.classifier(features.mean((2, 3)))


def digits_resnet(classes: int = 10, widths: tuple[int, ...] = (16, 32, 64)) -> nn.Module:
    """Build the network."""
    return DigitsResNet(classes, tuple(widths))
