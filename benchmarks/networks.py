"""The networks that are measured, with random weights: torchvision's, and others of any depth or width."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import OrderedDict
from collections.abc import Callable, Sequence

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


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network by its name, and one sample for it.

    Args:
        name: one of torchvision, or `residual-BLOCKS`, `dense-LAYERS` or `wide-UNITS`.

    Raises:
        ValueError: there is no such network.
    """
    kind, _, size = name.partition("-")
    if kind in _MADE_UP and size.isdecimal():
        make, shape = _MADE_UP[kind]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(int(size)), torch.randn(1, *shape)
    if name not in architectures():
        raise ValueError(
            f"`{name}`: expected a network of torchvision, or one of {', '.join(_MADE_UP)}, - and a size"
        )
    return build(name), pictures(image_size(name), 1)


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


def dense_network(layers: int, *, growth: int = 12, classes: int = 10) -> nn.Module:
    """Build a network in which every layer reads what all layers before it made, side by side."""
    stem = growth * 2
    return nn.Sequential(
        OrderedDict(
            stem=_conv_norm(3, stem, 3),
            **{f"layer{layer}": _Dense(stem + growth * layer, growth) for layer in range(layers)},
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(stem + growth * layers, classes),
        )
    ).eval()


def wide_network(width: int, *, inputs: int = 64, classes: int = 10) -> nn.Module:
    """Build a network of two wide layers, with narrow ones between."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, inputs), nn.LayerNorm(inputs),
        nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes),
    ).eval()  # fmt: skip


_MADE_UP: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "residual": (residual_network, (3, 32, 32)),
    "dense": (dense_network, (3, 16, 16)),
    "wide": (wide_network, (64,)),
}


class _Dense(nn.Module):
    """Puts what it makes beside what it was given."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv = nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, and `growth` new channels."""
        return torch.cat([x, self.conv(self.norm(x).relu())], 1)


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
