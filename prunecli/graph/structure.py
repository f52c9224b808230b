"""The result of tracing, as data: what goes together, what it costs, and what cannot be cut.

A *unit* is the smallest thing that can be removed. A *group* is a set of units that are alike: each
touches the same axes of the same tensors. An *axis* is one sized dimension of the network (of a
parameter, a buffer or an operation) with the owners of its positions; a position may have several
owners (a channel belongs to its attention head and to its place within the head) and goes when any
of them goes.

Everything here is plain data over NumPy integers: no torch, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Kept = Mapping[str, NDArray[np.bool_]]
"""Group name -> bool per unit, True = keep. Groups that are absent are kept whole."""


class Role(str, Enum):
    """What a tensor is to the operation that reads it."""

    WEIGHT = "weight"  # contracted with data: convolution, linear, embedding, matrix product
    BIAS = "bias"  # added to the result of a contraction
    SCALE = "scale"  # the gamma of a normalisation
    SHIFT = "shift"  # the beta of a normalisation
    STATISTIC = "statistic"  # running mean or variance
    OTHER = "other"  # anything else: layer scale, PReLU slope, position embedding


class Side(str, Enum):
    """Whether an axis holds what its layer puts out, or what it takes in."""

    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(frozen=True, eq=False)
class Owner:
    """The positions of an axis that one group owns: `positions[i]` goes when unit `units[i]` goes."""

    group: str
    positions: NDArray[np.int64]
    units: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Axis:
    """One sized dimension, and who owns its positions. Positions that nobody owns always stay."""

    length: int
    owners: tuple[Owner, ...]

    def kept(self, kept: Kept) -> NDArray[np.bool_]:
        """Return a bool per position, True where it stays."""
        stays = np.ones(self.length, dtype=bool)
        for owner in self.owners:
            if owner.group in kept:  # a position may belong to several units of one group
                stays[owner.positions[~kept[owner.group][owner.units]]] = False
        return stays

    def kept_length(self, kept: Kept) -> int:
        """Return how many positions stay."""
        return int(self.kept(kept).sum())


@dataclass(frozen=True)
class TensorAxes:
    """A parameter or buffer of the dense model: its shape, and per dimension its axis (None = uncut)."""

    shape: tuple[int, ...]
    axes: tuple[Axis | None, ...]
    role: Role
    is_parameter: bool


@dataclass(frozen=True, eq=False)
class Member:
    """One (tensor, dimension) of a group: `positions[i]` goes when unit `units[i]` goes.

    `gated` says that the tensor belongs to a gate site: the last affine layer before a reader, whose
    output a gate would multiply (METHODS 1.2). Its parameters sum to the gate's gradient.
    """

    tensor: str
    dim: int
    positions: NDArray[np.int64]
    units: NDArray[np.int64]
    role: Role
    side: Side
    gated: bool


@dataclass(frozen=True)
class CallKey:
    """Which call of a torch function in a forward pass: the `nth` of that name in the code of `module`.

    Every pass through the same code has the same keys, with gradients or without, on any device.
    """

    module: str
    function: str
    nth: int


class SiteKind(str, Enum):
    """What happens to the units at a site."""

    MADE = "made"  # the last affine call before a reader, or an affine call before that
    READ = "read"  # a layer contracts them with its weight
    RECTIFIED = "rectified"  # a ReLU has just set what is negative to zero


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor of the forward pass in which the units lie along one dimension.

    Position `positions[i]` along `dim` (counted from the last: -1) holds unit `units[i]`.
    """

    call: CallKey
    kind: SiteKind
    operand: int | None
    """Which positional operand of the call the tensor is; None: its result."""
    dim: int
    length: int
    positions: NDArray[np.int64]
    units: NDArray[np.int64]
    tensors: tuple[str, ...]
    """The parameters that make the units here; at a READ, the weight."""


@dataclass(frozen=True, eq=False)
class Group:
    """Units that go together across layers. Named after its first producing layer."""

    name: str
    width: int
    members: tuple[Member, ...]
    changes_statistics: bool = False
    """True where a mean, a norm or a normalisation runs over the units: removal changes it."""
    sites: tuple[Site, ...] = ()
    """Where the units appear in the forward pass, in its order."""

    @property
    def producers(self) -> tuple[Member, ...]:
        """Members that hold what the units put out."""
        return tuple(member for member in self.members if member.side is Side.PRODUCER)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Members that hold what reads the units."""
        return tuple(member for member in self.members if member.side is Side.CONSUMER)


@dataclass(frozen=True)
class FrozenAxis:
    """An axis of parameters that is not cut, and why, in plain words."""

    name: str
    """The (first) layer that holds it."""
    width: int
    reason: str
    module: str
    """The module in whose forward the reason arose; empty for the root."""
    op: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SizeAttribute:
    """An int attribute of a module (or one entry of a tuple of ints) that must follow an axis."""

    module: str
    name: str
    entry: int | None
    axis: Axis


@dataclass(frozen=True, eq=False)
class CostTerm:
    """Multiply-accumulates of one contraction: `coefficient` times the kept lengths of `axes`."""

    module: str
    op: str
    coefficient: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Structure:
    """Everything that `find_groups` learns of a model. See the module's docstring."""

    groups: tuple[Group, ...]
    frozen: tuple[FrozenAxis, ...]
    tensors: Mapping[str, TensorAxes]
    """Parameters and buffers (persistent or not) by canonical name; tied ones appear once."""
    aliases: Mapping[str, str]
    """Other names of tied tensors -> the canonical name."""
    attributes: tuple[SizeAttribute, ...]
    cost_terms: tuple[CostTerm, ...]
    rewritten: Mapping[str, str] = field(default_factory=dict)
    """Modules that were replaced by a size-explicit twin: module name -> class name of the twin."""
    follows_training: bool = False
    """Whether the training path runs parts that the eval path does not (auxiliary heads)."""
    outputs: tuple[str, ...] = ()
    """Parameters whose results reach the outputs of the network, and no other layer in between."""
    notes: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def unit_count(self) -> int:
        """How many units there are in all groups together."""
        return sum(group.width for group in self.groups)

    def parameters(self) -> Iterator[tuple[str, TensorAxes]]:
        """Yield the parameters (no buffers), each tied one once."""
        return ((name, tensor) for name, tensor in self.tensors.items() if tensor.is_parameter)

    def parameter_count(self, kept: Kept) -> int:
        """Return the number of parameters that stay."""
        lengths = _Lengths(kept)
        return sum(lengths.product(tensor.shape, tensor.axes) for _, tensor in self.parameters())

    def macs(self, kept: Kept) -> int:
        """Return the multiply-accumulates that stay, for one sample."""
        lengths = _Lengths(kept)
        return sum(
            lengths.product((term.coefficient,), (None,)) * lengths.product((1,) * len(term.axes), term.axes)
            for term in self.cost_terms
        )


class _Lengths:
    """Kept lengths under one plan, computed once per axis."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.known: dict[int, int] = {}

    def product(self, shape: tuple[int, ...], axes: tuple[Axis | None, ...]) -> int:
        total = 1
        for length, axis in zip(shape, axes, strict=True):
            total *= length if axis is None else self.of(axis)
        return total

    def of(self, axis: Axis) -> int:
        key = id(axis)
        if key not in self.known:
            self.known[key] = axis.kept_length(self.kept)
        return self.known[key]
