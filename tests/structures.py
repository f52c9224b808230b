"""Small networks whose groups are written out by hand, so that tests need no tracing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.graph.groups import find_groups
from prunecli.graph.structure import (
    Axis,
    CostTerm,
    Group,
    Member,
    Owner,
    Role,
    Side,
    Structure,
    TensorAxes,
)

ROLES = {
    "weight": Role.WEIGHT,
    "bias": Role.BIAS,
    "gamma": Role.SCALE,
    "beta": Role.SHIFT,
    "statistic": Role.STATISTIC,
    "other": Role.OTHER,
}


@dataclass(frozen=True, eq=False)
class Case:
    """A network, what find_groups should find in it, and what to feed it."""

    name: str
    model: nn.Module
    structure: Structure
    shape: tuple[int, ...]
    classes: int

    def batch(self, samples: int = 6, seed: int = 1) -> tuple[tuple[Tensor], Tensor]:
        """Return random inputs and labels, in the model's precision."""
        generator = torch.Generator().manual_seed(seed)
        dtype = next(self.model.parameters()).dtype
        inputs = torch.randn(samples, *self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return (inputs,), torch.randint(self.classes, (samples,), generator=generator)


def with_sites(case: Case) -> Case:
    """Add to each group where its units appear in the forward pass: that is left to tracing."""
    example = torch.zeros(1, *case.shape, dtype=next(case.model.parameters()).dtype)
    found = find_groups(case.model, (example,)).by_name
    groups = tuple(replace(group, sites=found[group.name].sites) for group in case.structure.groups)
    return replace(case, structure=replace(case.structure, groups=groups))


def member(
    tensor: str, dim: int, role: str, side: str, width: int, *, gated: bool = False, per_unit: int = 1
) -> Member:
    """Return a member whose unit u owns the `per_unit` positions from u * per_unit on."""
    positions = np.arange(width * per_unit)
    return Member(tensor, dim, positions, positions // per_unit, ROLES[role], Side(side), gated)


def layer(name: str, width: int, *, gated: bool, bias: bool = True) -> list[Member]:
    """Return what a convolution or linear layer contributes to the group of its outputs."""
    members = [member(f"{name}.weight", 0, "weight", "producer", width, gated=gated)]
    return members + [member(f"{name}.bias", 0, "bias", "producer", width, gated=gated)] * bias


def norm(name: str, width: int) -> list[Member]:
    """Return what a batch norm contributes: it is where the gate stands."""
    return [
        member(f"{name}.weight", 0, "gamma", "producer", width, gated=True),
        member(f"{name}.bias", 0, "beta", "producer", width, gated=True),
        member(f"{name}.running_mean", 0, "statistic", "producer", width),
        member(f"{name}.running_var", 0, "statistic", "producer", width),
    ]


def reader(name: str, width: int, per_unit: int = 1) -> list[Member]:
    """Return what a layer that reads the units contributes."""
    return [member(f"{name}.weight", 1, "weight", "consumer", width, per_unit=per_unit)]


def structure_of(
    model: nn.Module,
    groups: Sequence[Group],
    costs: Sequence[tuple[str, int]] = (),
    aliases: dict[str, str] | None = None,
) -> Structure:
    """Return the structure of `model` with these groups.

    Args:
        model: The network.
        groups: Its groups.
        costs: (layer, multiply-accumulates per entry of its weight), for the layers that cost.
        aliases: Other names of tied tensors.
    """
    aliases = aliases or {}
    tensors = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        roles = [m.role for group in groups for m in group.members if m.tensor == name]
        axes = tuple(_axis(name, dim, length, groups) for dim, length in enumerate(tensor.shape))
        role = roles[0] if roles else Role.OTHER
        tensors[name] = TensorAxes(tuple(tensor.shape), axes, role, isinstance(tensor, nn.Parameter))
    terms = tuple(_cost(tensors[f"{name}.weight"], name, each) for name, each in costs)
    return Structure(tuple(groups), (), tensors, aliases, (), terms)


def _axis(tensor: str, dim: int, length: int, groups: Sequence[Group]) -> Axis | None:
    owners = tuple(
        Owner(group.name, m.positions, m.units)
        for group in groups
        for m in group.members
        if (m.tensor, m.dim) == (tensor, dim)
    )
    return Axis(length, owners) if owners else None


def _cost(weight: TensorAxes, name: str, each: int) -> CostTerm:
    uncut = [length for length, axis in zip(weight.shape, weight.axes, strict=True) if axis is None]
    axes = tuple(axis for axis in weight.axes if axis is not None)
    return CostTerm(name, "aten.convolution", each * int(np.prod(uncut)), axes)


def mlp() -> Case:
    """Return three linear layers: the units of the first two can go."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    groups = [
        Group("0", 6, (*layer("0", 6, gated=True), *reader("2", 6))),
        Group("2", 5, (*layer("2", 5, gated=True), *reader("4", 5))),
    ]
    return with_sites(
        Case("mlp", model.eval(), structure_of(model, groups, [("0", 1), ("2", 1), ("4", 1)]), (4,), 3)
    )


def conv_norm() -> Case:
    """Return two convolutions with batch norms, flattened into a linear layer (16 columns per unit)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    shuffle(model)
    groups = [
        Group("0", 5, (*layer("0", 5, gated=False, bias=False), *norm("1", 5), *reader("3", 5))),
        Group("3", 4, (*layer("3", 4, gated=False), *norm("4", 4), *reader("7", 4, per_unit=16))),
    ]
    costs = [("0", 16), ("3", 16), ("7", 1)]
    return with_sites(
        Case("conv_norm", model.double().eval(), structure_of(model, groups, costs), (2, 4, 4), 3)
    )


class Residual(nn.Module):
    """A stem and two residual blocks on one shared stage of 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.in1, self.in1_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.out1, self.out1_norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.in2, self.in2_norm = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.out2, self.out2_norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(images)).relu()
        x = (x + self.out1_norm(self.out1(self.in1_norm(self.in1(x)).relu()))).relu()
        x = x + self.out2_norm(self.out2(self.in2_norm(self.in2(x)).relu()))
        return self.head(x.relu().mean((2, 3)))


def residual() -> Case:
    """Return a network whose three producers of the stage share their units."""
    torch.manual_seed(0)
    model = Residual()
    shuffle(model)
    stage = [*layer("stem", 6, gated=False, bias=False), *norm("stem_norm", 6)]
    for name in ("out1", "out2"):
        stage += [*layer(name, 6, gated=False, bias=False), *norm(f"{name}_norm", 6)]
    stage += [*reader("in1", 6), *reader("in2", 6), *reader("head", 6)]
    groups = [Group("stem", 6, tuple(stage))]
    for name, width, after in (("in1", 5, "out1"), ("in2", 4, "out2")):
        made = [*layer(name, width, gated=False, bias=False), *norm(f"{name}_norm", width)]
        groups.append(Group(name, width, (*made, *reader(after, width))))
    costs = [("stem", 16), ("in1", 16), ("out1", 16), ("in2", 16), ("out2", 16), ("head", 1)]
    return with_sites(
        Case("residual", model.double().eval(), structure_of(model, groups, costs), (2, 4, 4), 3)
    )


def shuffle(model: nn.Module) -> None:
    """Give norms the scales, shifts and statistics of a trained network, so that none is 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


CASES = (mlp, conv_norm, residual)
