"""Slow twins that know nothing of gates in a forward pass: they read and write parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Group, Structure
from prunecli.graph.twins import installed
from prunecli.importance.engine import groups_of_parameters
from prunecli.importance.fold import unit_sums
from prunecli.importance.gates import Gate
from prunecli.importance.look import Conditions, Look
from prunecli.importance.members import gate_members
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import ScoreBN, undisturbed
from tests.graph.nets import Case
from tests.structures import shuffle

Loss = Callable[[object, object], Tensor]


def main_tensor(output: object) -> Tensor:
    """Return the first tensor of whatever a network puts out."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return main_tensor(output[0])
    return main_tensor(next(iter((output if isinstance(output, dict) else vars(output)).values())))


def bent(output: object, targets: object) -> Tensor:
    """Return a loss in which no output plays the part of another, the mean over samples."""
    flat = main_tensor(output).flatten(1)
    slope = torch.linspace(-1, 1, flat.shape[1], dtype=flat.dtype)
    return (flat @ slope).square().mean() + (flat * slope).logsumexp(1).mean()


@dataclass(frozen=True, eq=False)
class Setting:
    """A network in float64 with its groups and a sample."""

    model: nn.Module
    structure: Structure
    inputs: tuple[Tensor, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups as methods see them."""
        return groups_of_parameters(self.structure, Gate.AFTER_BN)

    @property
    def batch(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """The sample with targets that no loss here reads."""
        return self.inputs, torch.zeros(len(self.inputs[0]))


def setting(case: Case, samples: int = 6) -> Setting:
    """Build a case of the zoo of small networks."""
    torch.manual_seed(0)
    model = case.build().double().eval()
    shuffle(model)
    example, inputs = (_in_float64(case.example(count)) for count in (1, samples))
    return Setting(model, find_groups(model, example), inputs)


def _in_float64(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)


@contextmanager
def looking(
    where: Setting,
    loss: Loss = bent,
    score_bn: ScoreBN = ScoreBN.EVAL,
    gate: Gate = Gate.AFTER_BN,
    **options: object,
) -> Iterator[Look]:
    """Look at the sample, as methods do."""
    groups = groups_of_parameters(where.structure, gate)
    conditions = Conditions(where.model, groups, loss, score_bn, **options)  # type: ignore[arg-type]
    inputs, targets = where.batch
    with undisturbed(where.model, score_bn, 0), installed(where.model, where.structure.rewritten):
        yield Look(conditions, MicroBatch(inputs, targets, len(inputs[0])), 0)


def gate_gradients(where: Setting, inputs: tuple[Tensor, ...], loss: Loss = bent) -> dict[str, Tensor]:
    """Return by group what the gradient of its gates must be: METHODS 3.1's sums over parameters."""
    parameters = dict(where.model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    value = loss(where.model(*inputs), torch.zeros(len(inputs[0])))
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    gradients = dict(zip(parameters, found, strict=True))
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    return {
        group.name: unit_sums(group, gate_members(group), torch.mul, values, gradients)
        for group in where.groups
    }


def loss_without(where: Setting, group: Group, units: list[int], loss: Loss = bent) -> float:
    """Return the loss of a copy whose gated parameters (else those that read the units) are set to zero."""
    dead = copy.deepcopy(where.model)
    parameters = dict(dead.named_parameters())
    with torch.no_grad():
        for member in gate_members(group):
            for unit in units:
                positions = torch.from_numpy(member.positions[member.units == unit])
                parameters[member.tensor].index_fill_(member.dim, positions, 0)
        return loss(dead(*where.inputs), where.batch[1]).item()
