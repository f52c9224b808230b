"""The story of `inspect`: a checkpoint -> what it holds, what goes together, and what cannot be cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prunecli.costs import describe
from prunecli.graph.structure import FrozenAxis, Group, Side, Structure
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.opening import Opened, open_model
from prunecli.pipeline.settings import Samples, Source
from prunecli.report import LayerFacts


@dataclass(frozen=True)
class InspectedLayer:
    """One layer, and the group that its units belong to; None where they are not cut."""

    name: str
    kind: str
    units: int | None
    params: int
    macs: int
    group: str | None


@dataclass(frozen=True)
class InspectedGroup:
    """Units that go together."""

    name: str
    width: int
    layers: tuple[str, ...]
    """Every layer that loses something with a unit, producers first."""
    params_per_unit: int
    """What removing the last unit frees."""
    macs_per_unit: int
    changes_statistics: bool


@dataclass(frozen=True)
class Frozen:
    """Units that are not cut, and why."""

    name: str
    width: int
    reason: str
    module: str
    op: str


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` says. Its fields are those of the JSON."""

    checkpoint: str
    sha256: str
    read_as: str
    """How the checkpoint was read: its format, wrapper and prefix."""
    factory: str
    inputs: tuple[str, ...]
    params: int
    macs: int
    units: int
    prunable_params: int
    """Parameters with at least one axis that can be cut."""
    layers: tuple[InspectedLayer, ...]
    groups: tuple[InspectedGroup, ...]
    frozen: tuple[Frozen, ...]
    not_counted: tuple[str, ...]
    notes: tuple[str, ...]


def inspect(
    checkpoint: str,
    source: Source | None = None,
    samples: Samples | None = None,
    listener: Listener | None = None,
) -> Inspection:
    """Say what a checkpoint is made of. Nothing is run but one traced forward pass."""
    opened = open_model(checkpoint, source or Source(), samples or Samples(), listener or Silent())
    return inspect_model(opened)


def inspect_model(opened: Opened) -> Inspection:
    """Say what an opened model is made of."""
    structure = opened.structure
    facts = describe(opened.model, *opened.example)
    owner = dict(_groups_of_layers(structure.groups))
    return Inspection(
        checkpoint=opened.name,
        sha256=opened.file.digest,
        read_as=opened.read_as,
        factory=opened.spec.factory,
        inputs=tuple("x".join(map(str, item.shape)) for item in opened.spec.inputs),
        params=facts.params,
        macs=facts.macs,
        units=structure.unit_count,
        prunable_params=_prunable_params(structure),
        layers=tuple(_layer(layer, owner.get(layer.name)) for layer in facts.layers),
        groups=tuple(_group(structure, group) for group in structure.groups),
        frozen=tuple(map(_frozen, structure.frozen)),
        not_counted=facts.not_counted,
        notes=structure.notes,
    )


def _groups_of_layers(groups: Iterable[Group]) -> Iterable[tuple[str, str]]:
    for group in groups:
        for member in group.producers:
            yield member.tensor.rpartition(".")[0], group.name


def _layer(layer: LayerFacts, group: str | None) -> InspectedLayer:
    return InspectedLayer(layer.name, layer.kind, layer.units, layer.params, layer.macs, group)


def _group(structure: Structure, group: Group) -> InspectedGroup:
    kept = {group.name: np.arange(group.width) < group.width - 1}
    members = sorted(group.members, key=lambda member: member.side is not Side.PRODUCER)
    return InspectedGroup(
        name=group.name,
        width=group.width,
        layers=tuple(dict.fromkeys(member.tensor.rpartition(".")[0] for member in members)),
        params_per_unit=structure.parameter_count({}) - structure.parameter_count(kept),
        macs_per_unit=structure.macs({}) - structure.macs(kept),
        changes_statistics=group.changes_statistics,
    )


def _frozen(axis: FrozenAxis) -> Frozen:
    return Frozen(axis.name, axis.width, axis.reason, axis.module, axis.op)


def _prunable_params(structure: Structure) -> int:
    return sum(
        int(np.prod(tensor.shape))
        for _, tensor in structure.parameters()
        if any(axis is not None and axis.owners for axis in tensor.axes)
    )
