"""A residual network for CIFAR in which each block has a width of its own."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class ProjectedBlock(nn.Module):
    """Two conv-BN layers and a projection around them, even where the shape stays the same.

    An identity would tie the widths of all blocks of a stage together.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.projection_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the residual and the projection, rectified."""
        residual = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (residual + self.projection_bn(self.projection(x))).relu()


class ProjectedResNet(nn.Module):
    """A stem, stages of blocks of which all but the first halve the picture, a mean over it, a classifier."""

    def __init__(self, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        outputs = [width for width, count in zip(widths, blocks, strict=True) for _ in range(count)]
        begins = {sum(blocks[:stage]) for stage in range(1, len(blocks))}
        self.blocks = nn.Sequential(
            *(
                ProjectedBlock(before, after, 2 if position in begins else 1)
                for position, (before, after) in enumerate(pairwise((widths[0], *outputs)))
            )
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of 3x32x32 images."""
        features = self.blocks(self.bn1(self.conv1(images)).relu())
        return self.classifier(features.mean((2, 3)))


def projected_resnet(
    classes: int = 10,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    blocks: tuple[int, ...] = (2, 2, 2, 2),
) -> nn.Module:
    """Build a network like ResNet-18; widths 16, 32, 64 with 3, 3, 3 blocks are like ResNet-20."""
    return ProjectedResNet(classes, tuple(widths), tuple(blocks))
