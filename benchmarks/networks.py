"""The networks that are measured, with random weights: torchvision's, and residual ones of any depth."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import models

IMAGE_SIZE = 224
_LEAST_SIZE = {"inception_v3": 299}  # its auxiliary head needs it
_WITHOUT_SLOW_INIT = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def parser_of(description: str | None, default: Sequence[str]) -> ArgumentParser:
    """Return a parser of command lines that name networks of torchvision; without names, the default ones."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=default, metavar="NAME", choices=(*architectures(), default),
        help=f"networks of torchvision ({', '.join(default)})",
    )  # fmt: skip
    return parser


def architectures() -> list[str]:
    """Return the names of torchvision's classification networks."""
    return list(models.list_models(module=models))


def family(name: str) -> str:
    """Return the file of torchvision that a network comes from: `resnet` for `resnext50_32x4d`."""
    return str(models.get_model_builder(name).__module__.rpartition(".")[2])


def image_size(name: str, size: int | None = None) -> int:
    """Return the height and width of the pictures that `build(name, size)` takes."""
    return size or _LEAST_SIZE.get(name, IMAGE_SIZE)


def build(name: str, size: int | None = None, *, seed: int = 0) -> nn.Module:
    """Build a network of torchvision in eval mode; vision transformers are made for one picture size."""
    options: dict[str, object] = dict(_WITHOUT_SLOW_INIT.get(name, {}))
    if family(name) == "vision_transformer":
        options["image_size"] = image_size(name, size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model.eval()


def pictures(size: int, count: int, *, seed: int = 0) -> Tensor:
    """Return random pictures."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def residual_network(blocks: int, *, width: int = 16, classes: int = 10) -> nn.Module:
    """Build a residual network for small pictures: four stages, the first block of each with a projection."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv_norm(3, width, 3))
    before = width
    for block in range(blocks):
        after = width * 2 ** (4 * block // blocks)
        layers[f"block{block}"] = _Block(before, after)
        before = after
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(before, classes)
    return nn.Sequential(layers).eval()


class _Block(nn.Module):
    """Two convolutions, and a shortcut past them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.one = _conv_norm(before, after, 3, stride)
        self.two = _conv_norm(after, after, 3)
        self.shortcut = nn.Identity() if before == after else _conv_norm(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return what both paths make of `x`, added."""
        added: Tensor = self.two(self.one(x).relu()) + self.shortcut(x)
        return added.relu()


def _conv_norm(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))
