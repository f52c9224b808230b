"""What training ever smaller nets costs, as the activation-density paper counts it (METHODS 8).

The paper (arXiv 2002.02949) counts the convolutions on the main path only: no 1x1 shortcuts, no linear
layers, no normalisations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from prunecli.graph.structure import Group, Kept, Member, Role, Side, Structure


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates for one sample."""

    params: int
    macs: int

    def times_smaller(self, dense: Cost) -> Cut:
        """Return how many times smaller this is than `dense`."""
        return Cut(params=dense.params / max(self.params, 1), macs=dense.macs / max(self.macs, 1))


@dataclass(frozen=True)
class Cut:
    """How many times fewer parameters and multiply-accumulates (OPS) a net has than the dense one."""

    params: float
    macs: float


def cost_of(structure: Structure, kept: Kept) -> Cost:
    """Return what stays of a net, everything counted."""
    return Cost(structure.parameter_count(kept), structure.macs(kept))


def chain_cost(widths: Sequence[int], sides: Sequence[int], inputs: int = 3, kernel: int = 3) -> Cost:
    """Return what a chain of square convolutions costs: N M k^2 parameters, O^2 N M k^2 operations each.

    Args:
        widths: M, what each puts out; the next one takes it in.
        sides: O, the side of each output.
        inputs: N of the first.
        kernel: k.

    >>> chain_cost([4, 2], sides=[8, 4], inputs=1)
    Cost(params=108, macs=3456)
    """
    params = [taken * made * kernel**2 for taken, made in zip((inputs, *widths), widths, strict=False)]
    return Cost(sum(params), sum(side**2 * each for side, each in zip(sides, params, strict=True)))


def training_complexity(nets: Iterable[tuple[int, float]]) -> float:
    """Return the sum of epochs / reduction over (epochs, reduction) of every net that was trained.

    With reductions of parameters instead of operations it is the training memory complexity.

    >>> training_complexity([(100, 1.0), (210, 6.0)])
    135.0
    """
    return sum(epochs / reduction for epochs, reduction in nets)


def main_path(structure: Structure) -> Structure:
    """Return the structure with the costs of the convolutions on the main path alone.

    A shortcut is a convolution with kernel 1 that reads what another convolution reads too, and puts out
    units that another one puts out too.
    """
    makers, readers = (
        Counter(group.name for group in structure.groups for _ in kernels(structure, group, side))
        for side in (Side.PRODUCER, Side.CONSUMER)
    )
    made, read = (
        {
            member.tensor: group.name
            for group in structure.groups
            for member in kernels(structure, group, side)
        }
        for side in (Side.PRODUCER, Side.CONSUMER)
    )
    kept = {
        name
        for name, tensor in structure.tensors.items()
        if _is_kernel(structure, name)
        and not (
            prod(tensor.shape[2:]) == 1 and makers[made.get(name, "")] > 1 and readers[read.get(name, "")] > 1
        )
    }
    layers = {name.rpartition(".")[0] for name in kept}
    return replace(
        structure,
        tensors={name: tensor for name, tensor in structure.tensors.items() if name in kept},
        cost_terms=tuple(term for term in structure.cost_terms if term.module in layers),
    )


def kernels(structure: Structure, group: Group, side: Side) -> tuple[Member, ...]:
    """Return the weights of convolutions that make the units of a group, or that read them."""
    return tuple(
        member for member in group.members if member.side is side and _is_kernel(structure, member.tensor)
    )


def _is_kernel(structure: Structure, name: str) -> bool:
    tensor = structure.tensors[name]
    return tensor.role is Role.WEIGHT and tensor.is_parameter and len(tensor.shape) > 2
