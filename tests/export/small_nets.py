"""Networks made smaller by hand: `narrow(model)` changes the dense one in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunecli.export.record import PrunedRecord, write_sizes
from prunecli.graph import twins
from prunecli.model import build_model
from prunecli.spec import ModelSpec, read_spec, to_json_dict

SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Convolution, norm, a tied pair, a hidden buffer, a list of parameters, and a plain tensor."""

    def __init__(self, width=8, plain=True):
        super().__init__()
        self.width = width
        self.sizes = (width, 3)
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Linear(width, 6)
        self.tied = nn.Linear(width, 6)
        self.tied.weight = self.up.weight
        self.conv.bias.requires_grad_(False)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, width), persistent=False)
        self.listed = [self.up.bias, {"norm": self.norm.weight}]
        if plain:
            self.plain = torch.full((6,), 0.25)

    def forward(self, x):
        y = self.norm(self.conv(x)).mean((2, 3)) * self.gain
        z = self.up(y) + self.tied(y) * getattr(self, "plain", 1.0)
        return z + self.listed[0] + self.listed[1]["norm"].sum()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Cached(nn.Module):
    """Makes a buffer in its first forward."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(4.0), persistent=False)
        return self.out(x) * self.table
'''


@dataclass(frozen=True)
class Case:
    """A network of SOURCE, made smaller."""

    factory: str
    inputs: Tensor
    narrow: Callable[[nn.Module], None]
    record: PrunedRecord


def halve(old: Tensor, *dims: int) -> nn.Parameter:
    """Keep the odd positions of the dimensions."""
    for dim in dims:
        old = old.index_select(dim, torch.arange(1, old.shape[dim], 2))
    return nn.Parameter(torch.randn_like(old))


def narrow_net(model: nn.Module) -> None:
    model.width, model.sizes = 4, (4, 3)
    model.conv.weight, model.conv.out_channels = halve(model.conv.weight, 0), 4
    model.conv.bias = halve(model.conv.bias, 0).requires_grad_(False)
    model.norm.weight, model.norm.bias = halve(model.norm.weight, 0), halve(model.norm.bias, 0)
    model.norm.running_mean, model.norm.running_var, model.norm.num_features = (
        torch.randn(4),
        torch.rand(4),
        4,
    )
    model.up.weight = model.tied.weight = halve(model.up.weight, 1)
    model.up.bias = nn.Parameter(torch.randn(6))
    model.gain = torch.tensor([1.0, 2.0, 3.0, 4.0])
    model.listed = [model.up.bias, {"norm": model.norm.weight}]


def narrow_attention(model: nn.Module) -> None:
    twins.install(model, {"attention": "SizedMultiheadAttention"})
    attention = model.attention
    attention.num_heads = 3
    for name in ("in_proj_weight", "in_proj_bias"):
        old = getattr(attention, name)
        setattr(attention, name, nn.Parameter(torch.randn(36, *old.shape[1:])))
    attention.out_proj.weight = nn.Parameter(torch.randn(16, 12))


def fill_recurrent(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


NET_SIZES = write_sizes(
    {"": {"width": 4, "sizes": (4, 3)}, "conv": {"out_channels": 4}, "norm": {"num_features": 4}}
)
CASES = {
    "net": Case("Net", torch.randn(2, 3, 5, 5), narrow_net, PrunedRecord(attributes=NET_SIZES)),
    "recurrent": Case("Recurrent", torch.randn(2, 5, 4), fill_recurrent, PrunedRecord()),
    "attention": Case(
        "Attention",
        torch.randn(2, 5, 16),
        narrow_attention,
        PrunedRecord(
            attributes={"attention": {"num_heads": 3}}, rewritten={"attention": "SizedMultiheadAttention"}
        ),
    ),
    "cached": Case(
        "Cached",
        torch.randn(2, 4),
        lambda model: setattr(model, "_ran", model(torch.ones(1, 4)).shape),
        PrunedRecord(),
    ),
}


@dataclass(frozen=True)
class Pruned:
    """What a test works on."""

    model: nn.Module
    inputs: Tensor
    record: PrunedRecord
    spec: ModelSpec


def prune(case: Case, folder: Path) -> Pruned:
    (folder / "spec.toml").write_text(
        f'[model]\nfactory = "nets.py:{case.factory}"\n[input]\nshape = {list(case.inputs.shape[1:])}\n'
    )
    spec = read_spec(folder / "spec.toml")
    model = build_model(spec)
    with torch.no_grad():
        case.narrow(model)
    return Pruned(model, case.inputs, replace(case.record, spec=to_json_dict(spec)), spec)
