"""Gives layers that lost inputs the weights that `i-spasp-train` learned along with its selection.

What each layer reads is that of the dense network, as in the paper, so that the order of layers does not
matter. Where a plan keeps the units that the method selects, the layers get its weights; where it keeps
others, the dense weights on these are trained by the same steps. Only weights of layers that read units
change; biases stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.graph.copying import copy_module, named_tensors
from prunecli.graph.cutting import slice_tensor
from prunecli.graph.structure import Group, Kept, Site, Structure
from prunecli.importance.draws import draws_for
from prunecli.importance.grams import Place, Read, collect, holds_columns, with_columns
from prunecli.importance.look import MEMORY
from prunecli.importance.micro_batches import Batch
from prunecli.importance.readings import readings, refuse_unread
from prunecli.importance.sparse_columns import Course, Learned, Reader, learn, loss_of, train_on
from prunecli.recovery.layers import Refit


@dataclass(frozen=True)
class Learning:
    """What was trained."""

    samples: int
    layers: tuple[Refit, ...]
    """The errors are shares of the squared size of what the layer makes of the units that were cut into."""
    selected: tuple[str, ...]
    """Groups of which the plan keeps what the method selects: their readers got its weights."""
    fixed: tuple[str, ...]
    """Groups of which the plan keeps other units."""
    skipped: tuple[str, ...]
    """Layers that lost inputs and stay as they were cut, each with the reason."""


def learn_readers(
    dense: nn.Module,
    pruned: nn.Module,
    structure: Structure,
    kept: Kept,
    batches: Iterable[Batch],
    course: Course = Course(),  # noqa: B008 (frozen)
    *,
    seed: int = 0,
    micro_batch: int = 64,
    memory: int = MEMORY,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[nn.Module, Learning]:
    """Return a copy of `pruned` with trained weights in the layers that lost inputs, and how well that went.

    Args:
        dense: The model that was cut.
        pruned: What `apply_plan` made of it.
        structure: The structure of the dense model.
        kept: What was kept.
        batches: (inputs, targets) pairs: those that the method scored, for the weights that it learned.
        course: How the iterations go.
        seed: What the method was seeded with; a random start depends on it.
        micro_batch: How many samples run at a time.
        memory: Bytes that Gram matrices may take.
        tell: Hears (stage, how much is done, how much there is; 0: not known).

    Raises:
        ScoreError: A layer reads a group in more columns than there is memory for.
    """
    cut = [group for group in structure.groups if group.name in kept and not kept[group.name].all()]
    groups = [group for group in cut if refuse_unread(group) is None]
    skipped = [f"`{group.name}`, which {refuse_unread(group)}" for group in cut if group not in groups]
    found, samples = collect(
        dense, structure, groups, batches, seed=seed, micro_batch=micro_batch, memory=memory, tell=tell
    )
    weights = _Weights(structure, named_tensors(dense))
    selected: list[str] = []
    fixed: list[str] = []
    for number, group in enumerate(groups if found else []):
        tell("training", number + 1, len(groups))
        places = weights.holding(group, found[group.name])
        if places:
            readers = [read.reader for read in places.values()]
            support = torch.from_numpy(kept[group.name])
            trained, is_selected = _trained(group, readers, support, course, seed)
            weights.take(group, list(places), readers, support, trained)
            (selected if is_selected else fixed).append(group.name)
    numbers = weights.changed

    def replaced(name: str, tensor: Tensor) -> Tensor:
        new = slice_tensor(numbers[name], name, structure, kept) if name in numbers else tensor.detach()
        return new.to(tensor).clone()

    done = Learning(samples, weights.refits, tuple(selected), tuple(fixed), (*skipped, *weights.skipped))
    return copy_module(pruned, replaced), done


def _trained(
    group: Group, readers: list[Reader], support: Tensor, course: Course, seed: int
) -> tuple[Learned, bool]:
    """Return weights on the units that the plan keeps, and whether these units are the method's choice."""
    found = learn(readers, group.width, int(support.sum()), course, draws_for(group, seed))
    is_selected = torch.equal(found.support, support)
    plain = tuple(reader.weight * support[reader.units] for reader in readers)
    if is_selected and loss_of(readers, found.weights) <= loss_of(readers, plain):
        return found, True
    return train_on(readers, support, course), is_selected


class _Weights:
    """The weights of the dense model, with trained columns put in group by group."""

    def __init__(self, structure: Structure, dense: Mapping[str, Tensor]) -> None:
        self.dense, self.tied = dense, set(structure.aliases.values())
        self.changed: dict[str, Tensor] = {}
        self.skipped: list[str] = []
        self._losses: dict[str, list[float]] = {}

    @property
    def refits(self) -> tuple[Refit, ...]:
        """The layers, each with its errors before and after."""
        return tuple(
            Refit(_layer(name), before / energy, after / energy)
            for name, (energy, before, after) in self._losses.items()
            if energy > 0
        )

    def holding(self, group: Group, found: Mapping[Place, Read]) -> dict[Place, Read]:
        """Return the readers whose weights can be trained; the others are skipped."""
        reasons = {place.weight: self._reason_against(group, place.weight, found) for place in found}
        for name, reason in reasons.items():
            text = f"`{_layer(name)}`, {reason}"
            if reason is not None and text not in self.skipped:
                self.skipped.append(text)
        return {place: read for place, read in found.items() if reasons[place.weight] is None}

    def _reason_against(self, group: Group, name: str, found: Mapping[Place, Read]) -> str | None:
        if name in self.tied:
            return "whose weight is tied to another"
        parts = {place.block: read.weight for place, read in found.items() if place.weight == name}
        if not holds_columns(self.dense[name], group, _site_of(group, name), parts):
            return "which does not use its weight as it is"
        return None

    def take(
        self, group: Group, places: list[Place], readers: list[Reader], support: Tensor, trained: Learned
    ) -> None:
        """Put the trained columns of a group into the weights, and note how far the layers were and are."""
        parts: dict[str, dict[int, Tensor]] = {}
        for place, reader, weight in zip(places, readers, trained.weights, strict=True):
            parts.setdefault(place.weight, {})[place.block] = weight
            losses = self._losses.setdefault(place.weight, [0.0, 0.0, 0.0])
            plain = reader.weight * support[reader.units]
            for number, each in enumerate((torch.zeros_like(plain), plain, weight)):
                losses[number] += loss_of([reader], (each,))
        for name, blocks in parts.items():
            whole = self.changed.get(name, self.dense[name].detach().double().cpu())
            self.changed[name] = with_columns(whole, group, _site_of(group, name), blocks)


def _site_of(group: Group, weight: str) -> Site:
    return next(site for site in readings(group) if weight in site.tensors)


def _layer(weight: str) -> str:
    return weight.rpartition(".")[0] or weight
