"""Squared norms that run with the data: what of a producer's weights arrives at each position of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Source:
    """A layer's output, and what is found to read each of its units."""

    energies: Tensor
    """The squared norm of what makes each unit, [width]; its gradient tells how much of it is read where."""
    reach: Tensor
    """One per unit, [width]; its gradient tells where units get to, whatever they are multiplied with."""
    readers: Tensor
    """The squared norms of what reads each unit, added up: [width]."""
    is_read: Tensor
    """Whether anything reads it: [width]."""
    lost_in: set[str] = field(default_factory=set)
    """Functions that read it and cannot be followed."""

    @staticmethod
    def of(energies: Tensor) -> Source:
        """Return a source that nothing reads yet."""
        unread = torch.zeros_like(energies)
        ones = torch.ones_like(energies)
        return Source(energies.detach().requires_grad_(), ones.requires_grad_(), unread, unread.bool())

    def credit(self, energies: Tensor, reached: Tensor) -> None:
        """Add one reader."""
        self.readers = self.readers + energies
        self.is_read = self.is_read | reached


@dataclass(eq=False)
class Flow:
    """What arrives at each position of a tensor: a squared norm, and whether there is anything at all."""

    energy: Tensor
    """The squared norms of what makes each position, in the tensor's shape."""
    present: Tensor
    """1 where data lie, 0 where there is padding or a constant."""
    parents: tuple[Flow, ...] = ()
    source: Source | None = None
    unknown: str | None = None
    """The function that made it, if that cannot be followed: then each position counts 1."""
    was_read: bool = False
    """Whether a layer reads this, or what has been made of it."""
    is_gated: bool = False
    """Whether it has just been multiplied with data: those who read it before may have made the gate."""

    @staticmethod
    def made(source: Source, dim: int, like: Tensor) -> Flow:
        """Return the output of a layer whose units lie along `dim`, counted from the last."""
        shape = [1] * like.dim()
        shape[dim] = -1
        energy, reach = (each.reshape(shape).expand(like.shape) for each in (source.energies, source.reach))
        return Flow(energy, reach, source=source)

    @staticmethod
    def ones(like: Tensor, unknown: str | None = None) -> Flow:
        """Return a flow in which each position counts 1: nothing is known in front of it."""
        ones = torch.ones((), dtype=torch.float64, device=like.device).expand(like.shape)
        return Flow(ones, ones, unknown=unknown)

    def before(self, *, into_gates: bool = True) -> Iterator[Flow]:
        """Yield this flow and everything it is made of, up to the outputs of layers; each once."""
        waiting, seen = [self], {id(self)}
        while waiting:
            flow = waiting.pop()
            yield flow
            if flow.is_gated and not into_gates:
                continue
            for parent in flow.parents:
                if id(parent) not in seen:
                    seen.add(id(parent))
                    waiting.append(parent)

    @property
    def sources(self) -> list[Source]:
        """The layers whose outputs it is made of."""
        return list({id(each.source): each.source for each in self.before() if each.source}.values())

    @property
    def hidden_by(self) -> set[str]:
        """The functions that hide what it is made of."""
        return {flow.unknown for flow in self.before() if flow.unknown is not None}

    @property
    def is_identity(self) -> bool:
        """Whether a layer has read it already: then it goes past that layer."""
        return any(flow.was_read for flow in self.before(into_gates=False))

    def units(self, dim: int) -> Tensor:
        """Return the mean energy of each unit along `dim`, over the places where there are data."""
        places = [each for each in range(self.energy.dim()) if each != dim % self.energy.dim()]
        total, count = (each.sum(places) if places else each for each in (self.energy, self.present.detach()))
        return torch.where(count > 0, total / count.clamp(min=1), 0)

    def read(self, units: Tensor, weights: Tensor) -> None:
        """Note that a layer reads it: unit by unit, with the squared norms `weights`."""
        for flow in self.before():
            flow.was_read = True
        self._credit((units * weights).sum(), 1.0)

    def passed(self) -> Flow:
        """Return what goes past a layer: it counts 1, for those who make it as for those who read it."""
        self._credit(self.energy.sum(), None)
        return Flow(self.present.detach(), self.present.detach())

    def _credit(self, total: Tensor, places: float | None) -> None:
        """Tell the sources of a reader.

        Args:
            total: What it reads in all; it grows with the energy of a unit as its weights say.
            places: By how many places that is to be divided; None: by all that the unit has here.
        """
        sources = self.sources
        reached = _slopes(self.present.sum(), [each.reach for each in sources])
        found = _slopes(total, [each.energies for each in sources])
        for source, count, energies in zip(sources, reached, found, strict=True):
            there = count > 0
            source.credit(energies / (places or torch.where(there, count, 1)), there)

    def lose(self, function: str) -> None:
        """Note that a function reads it which cannot be followed."""
        for source in self.sources:
            source.lost_in.add(function)

    def scaled(self, factor: Tensor | float) -> Flow:
        """Return the flow times a squared factor."""
        energy = self.energy * factor
        return Flow(energy, self.present.expand(energy.shape), (self,))


def moved(parents: Sequence[Flow], energy: Tensor, present: Tensor) -> Flow:
    """Return flows that were moved, energies and presence alike: a mean is one over data only."""
    weight = present.detach()
    energy = torch.where(weight > 0, energy / torch.where(weight > 0, weight, 1), 0)
    there = torch.where(weight > 0, present / torch.where(weight > 0, weight, 1), 0)
    return Flow(energy, there, tuple(parents))


def summed(flows: Sequence[Flow], shape: torch.Size, *, is_gated: bool = False) -> Flow:
    """Return the flow of something that several make: their energies add up."""
    energies = sum((each.energy for each in flows[1:]), flows[0].energy)
    present = sum((each.present for each in flows[1:]), flows[0].present)
    present = present - (present - present.clamp(max=1)).detach()  # at most 1, with a full slope in each
    return Flow(energies.expand(shape), present.expand(shape), tuple(flows), is_gated=is_gated)


def added(flows: Sequence[Flow], shape: torch.Size) -> Flow:
    """Return the sum of tensors, in which what goes past a layer counts 1."""
    if len(flows) == 1:  # the other operand is a constant
        return summed(flows, shape)
    return summed([each.passed() if each.is_identity else each for each in flows], shape)


def _slopes(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Return by how much a sum grows with each of the leaves."""
    if not leaves or not total.requires_grad:
        return [torch.zeros_like(each) for each in leaves]
    return list(torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True))
