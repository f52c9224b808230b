"""VGG-16 (Simonyan and Zisserman, 2015) for CIFAR-10, with batch normalisation and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Output channels of the convolutions; 0: the picture is halved."""


class VGG(nn.Module):
    """Convolutions of 3 x 3 with normalisation and ReLU, halvings between them, a classifier."""

    def __init__(self, widths: Sequence[int] = WIDTHS, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            if not width:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit per class and picture."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
