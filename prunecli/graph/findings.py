"""What a trace knows of tensors, and what it collects besides constraints."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from prunecli.graph.constraints import Atoms, Labels
from prunecli.graph.structure import CallKey, Role, SiteKind


@dataclass(frozen=True)
class Flow:
    """What a tensor was made of.

    `from_data` tells activations from tensors that parameters alone determine; `parameters` are the
    ones a derived weight was computed from; `open_sites` are the gate sites (names of parameters)
    whose output this activation still carries, not yet read by a contraction.
    """

    from_data: bool = False
    parameters: frozenset[str] = frozenset()
    open_sites: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tag:
    """What the tracer knows of one tensor."""

    labels: Labels
    flow: Flow = Flow()
    picked_from: Atoms | None = None
    """For positions found by argmax and the like: the labels they count along."""


@dataclass(frozen=True, eq=False)
class Contraction:
    """The cost of one contraction: `coefficient` multiply-accumulates per combination of `labels`."""

    module: str
    op: str
    coefficient: int
    labels: tuple[Atoms, ...]


@dataclass(frozen=True, eq=False)
class Watched:
    """A tensor that a torch function call took or gave, of interest to methods that look at activations."""

    call: CallKey
    kind: SiteKind
    operand: int | None
    labels: Labels
    tensors: tuple[str, ...]


@dataclass
class Path:
    """What the code of one module did, in order: another order once it is cut means that sizes steer it."""

    operations: list[str] = field(default_factory=list)
    """Names of operations, without those that only move or copy."""
    scalars: list[float] = field(default_factory=list)
    """Numbers that entered the arithmetic."""
    picks: list[Atoms] = field(default_factory=list)
    """Parts of labelled dimensions that were sliced out."""


@dataclass
class Findings:
    """What a trace collects besides constraints."""

    roles: dict[str, Role] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    """Tensors in the order of their first use -> the module that used them first."""
    gated: set[str] = field(default_factory=set)
    """Parameters of gate sites: of the last affine layer before a reader."""
    outputs: set[str] = field(default_factory=set)
    """Parameters of the gate sites that the outputs of the network come from."""
    consumed: list[Atoms] = field(default_factory=list)
    produced: list[Atoms] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    sizes: dict[str, dict[int, tuple[Atoms, bool]]] = field(default_factory=dict)
    """Per module the labels seen in it, by identity; True for those an operation was given the size of."""
    channels: dict[str, tuple[Atoms, Atoms, Atoms]] = field(default_factory=dict)
    """Modules that ran a grouped convolution -> labels of its input, of its output and of its groups."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Operations without a rule -> the module they first ran in."""
    path: dict[str, Path] = field(default_factory=dict)
    """What the code of each module did, beside moving atoms."""
    is_sized: bool = False
    """Whether code split or joined labelled dimensions, or gave the length of one to an operation. What a
    grouped convolution splits does not count: it refuses sizes that do not fit."""

    def note_size(self, module: str, label: Atoms, *, given: bool) -> None:
        """Note that a label was seen in a module, and whether an operation was given its length."""
        seen = self.sizes.setdefault(module, {})
        if given or id(label) not in seen:
            seen[id(label)] = (label, given)

    def extend(self, later: Findings) -> None:
        """Add what was found later."""
        for name, role in later.roles.items():
            self.roles.setdefault(name, role)
        for own, new in ((self.used, later.used), (self.unknown, later.unknown)):
            for name, module in new.items():
                own.setdefault(name, module)
        self.gated |= later.gated
        self.outputs |= later.outputs
        self.consumed += later.consumed
        self.produced += later.produced
        self.contractions += later.contractions
        self.watched += later.watched
        self.channels.update(later.channels)
        self.is_sized |= later.is_sized
        for module, seen in later.sizes.items():
            for label, given in seen.values():
                self.note_size(module, label, given=given)
        for module, path in later.path.items():
            own_path = self.path.setdefault(module, Path())
            own_path.operations += path.operations
            own_path.scalars += path.scalars
            own_path.picks += path.picks

    def path_so_far(self) -> dict[str, Path]:
        """Return what the code of each module did until now: what it does later is not added to it."""
        return {
            name: Path(list(path.operations), list(path.scalars), list(path.picks))
            for name, path in self.path.items()
        }


def label_arrays(labels: Labels) -> list[Atoms]:
    """Return the labels that are known, without the rest."""
    return [label for label in labels if isinstance(label, np.ndarray)]
