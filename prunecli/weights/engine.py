"""Model + structure + sample -> scores of its weights, and masks under a budget. The model stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prunecli.arguments import arguments_of
from prunecli.errors import DataError, ScoreError
from prunecli.graph.structure import Structure
from prunecli.importance.gradients import LossFn, find_parameters
from prunecli.importance.look import MEMORY, Tell
from prunecli.importance.micro_batches import Batch, MicroBatch, micro_batches
from prunecli.importance.registry import Granularity, Needs, build_methods, find_method
from prunecli.importance.scores import About
from prunecli.importance.undisturbed import ScoreBN, undisturbed
from prunecli.peers import ALONE, Peers
from prunecli.weights.choosing import Selection, WeightBudget
from prunecli.weights.network import Masks, Network, WeightMethod, WeightScores


@runtime_checkable
class Stepping(Protocol):
    """A method that prunes in steps, and scores again after each."""

    steps: int


@runtime_checkable
class Balanced(Protocol):
    """A method that wants so many samples of each class; 0: whatever comes."""

    per_class: int


@runtime_checkable
class Remarking(Protocol):
    """A method that has something to say of its scores."""

    def notes(self, network: Network) -> tuple[str, ...]:
        """Return what a reader should know, once the scores are made."""
        ...


@dataclass(frozen=True, eq=False)
class Masking:
    """A decision: which weights stay, and how it came about."""

    masks: Masks
    about: About
    budget: WeightBudget
    selection: Selection
    count: int
    """How many weights should stay."""
    parameters: int
    """How many parameters the model has in all."""

    @property
    def kept(self) -> int:
        """How many of the prunable weights stay."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def prunable(self) -> int:
        """How many prunable weights there are."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The tensors of which nothing is left."""
        return tuple(name for name, mask in self.masks.items() if not mask.any())


@dataclass(frozen=True, eq=False)
class Sample:
    """The samples that weights are scored on, and how their loss is measured."""

    batches: Iterable[Batch]
    loss_fn: LossFn | None
    batch_size: int


@dataclass(frozen=True, eq=False)
class Lender:
    """A model, and everything that is said of how its weights are to be scored.

    The model stays on its device, and bit-identical.
    """

    model: nn.Module
    structure: Structure
    """What `find_groups` found on it."""
    example: tuple[tuple[Any, ...], Mapping[str, Any]]
    """Positional and keyword inputs of one sample."""
    names: Sequence[str]
    """The prunable parameters, as `prunable_weights` gives them."""
    method: str
    method_args: Mapping[str, object] = field(default_factory=dict)
    sample: Sample | None = None
    """None: there is none, for methods that look at no data."""
    masks: Masks | None = None
    """What is masked already."""
    score_bn: ScoreBN = ScoreBN.EVAL
    seed: int = 0
    memory: int = MEMORY
    tell: Tell = lambda stage, done, total: None
    peers: Peers = ALONE
    """The processes that score the same model, each by its batches of the same sample."""

    @property
    def prunable(self) -> int:
        """How many prunable weights there are."""
        return sum(prod(self.structure.tensors[name].shape) for name in self.names)

    @contextmanager
    def lent(self) -> Iterator[_Scorer]:
        """Yield what scores the model, which lies ready meanwhile.

        Raises:
            UsageError: The method or an argument of it is unknown.
            DataError: The method needs samples and there are none.
        """
        info = find_method(self.method, Granularity.WEIGHT)
        method = build_methods([self.method], self.method_args, Granularity.WEIGHT)[self.method]
        if info.needs_data and self.sample is None:
            raise DataError(f"`{self.method}` looks at samples; there are none.")
        if Needs.LABELS in info.needs and self.sample is not None and self.sample.loss_fn is None:
            raise DataError(f"`{self.method}` needs labelled samples and a loss; there is no loss.")
        with undisturbed(self.model, self.score_bn, self.seed):
            network = Network(
                self.model,
                self.structure,
                find_parameters(self.model, self.structure, set(self.names)),
                self.example,
                self.sample.loss_fn if self.sample is not None else None,
                self.seed,
                self._masks_there(),
                self.memory,
                self.tell,
                peers=self.peers,
            )
            yield _Scorer(method, network, self._batches(method, info.needs_data), self)

    def _masks_there(self) -> Masks | None:
        """Return what is masked already of the prunable weights, where the model is."""
        if self.masks is None:
            return None
        device = next(self.model.parameters()).device
        shapes = {name: self.structure.tensors[name].shape for name in self.names}
        return {
            name: self.masks[name].to(device)
            if name in self.masks
            else torch.ones(shape, dtype=torch.bool, device=device)
            for name, shape in shapes.items()
        }

    def _batches(self, method: WeightMethod, needed: bool) -> list[MicroBatch]:
        if not needed or self.sample is None:
            return []
        device = next(self.model.parameters()).device
        stream = micro_batches(self.sample.batches, self.sample.batch_size, device)
        found = list(stream)
        if not found:
            raise DataError("The sample is empty: there is nothing to score the weights on.")
        return balanced(found, method.per_class) if isinstance(method, Balanced) else found


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Scores a model that lies ready."""

    method: WeightMethod
    network: Network
    batches: Sequence[MicroBatch]
    lender: Lender

    def scores(self, masks: Masks | None) -> WeightScores:
        """Return the scores under masks.

        Raises:
            ScoreError: One is not finite.
        """
        scores = self.method.score(replace(self.network, masks=masks), self.batches)
        for name in self.lender.names:
            broken = int((~scores[name].isfinite()).sum())
            if broken:
                raise ScoreError(
                    f"`{self.lender.method}` gives {broken:,} of {scores[name].numel():,} weights of "
                    f"`{name}` a score that is not finite. Check the checkpoint for nan and inf, or score in "
                    "float64."
                )
        return {name: scores[name].detach() for name in self.lender.names}

    def about(self) -> About:
        """Return how the scores came to be."""
        info, lender = find_method(self.lender.method, Granularity.WEIGHT), self.lender
        weight = Granularity.WEIGHT.value
        about = About(lender.method, arguments_of(self.method), lender.seed, granularity=weight)
        if isinstance(self.method, Remarking):
            about = replace(about, notes=self.method.notes(self.network))
        if not info.needs_data or lender.sample is None:
            return about
        return replace(
            about,
            samples=sum(batch.samples for batch in self.batches),
            batches=len(self.batches),
            micro_batch=lender.sample.batch_size,
            score_bn=lender.score_bn.value,
        )


def score_weights(lender: Lender) -> tuple[WeightScores, About]:
    """Return one number per prunable weight, on the CPU, and how they came to be. Higher = keep.

    Raises:
        UsageError: The method or an argument of it is unknown.
        DataError: The method needs samples and there are none.
        ScoreError: The model fails, or a score is not finite.
    """
    with lender.lent() as scorer:
        found = scorer.scores(scorer.network.masks)
        return {name: scores.cpu() for name, scores in found.items()}, scorer.about()


def choose_masks(lender: Lender, budget: WeightBudget, selection: Selection | None = None) -> Masking:
    """Score the weights, and return the masks under which exactly as many stay as the budget says.

    A method that prunes in steps scores again after each: after step i of n, N (k / N)^(i / n) weights stay,
    of N, until they are k. What is masked already stays so, and counts as gone.

    Args:
        lender: The model, the method and the sample.
        budget: How many weights stay.
        selection: Among which the lowest are looked for, and by which rule; globally by default.

    Raises:
        BudgetError: The budget cannot be met.
        UsageError, DataError, ScoreError: As in `score_weights`.
    """
    selection = (selection or Selection()).within(lender.model)
    total, parameters = lender.prunable, lender.structure.parameter_count({})
    shapes = {name: lender.structure.tensors[name].shape for name in lender.names}
    count = selection.count(budget, shapes, parameters - total)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    masked = {name: int(mask.sum()) for name, mask in (lender.masks or {}).items() if name in sizes}
    selection.check(sizes, count, {**sizes, **masked})
    with lender.lent() as scorer:
        masks = scorer.network.masks
        steps = scorer.method.steps if isinstance(scorer.method, Stepping) else 1
        for step in range(1, steps + 1):
            stay = count if step == steps else round(total * (count / total) ** (step / steps))
            masks = selection.masks(scorer.scores(masks), stay, masks)
            lender.tell("pruning", step, steps)
        assert masks is not None  # there is at least one step
        on_cpu = {name: mask.cpu() for name, mask in masks.items()}
        about = scorer.about()
        about = replace(about, notes=(*about.notes, *selection.notes(shapes)))
        return Masking(on_cpu, about, budget, selection, count, parameters)


def balanced(batches: Sequence[MicroBatch], per_class: int) -> list[MicroBatch]:
    """Return the first `per_class` samples of each class, in batches as large as those given.

    Raises:
        DataError: The labels are no classes, or there are too few samples of one.
    """
    if not per_class:
        return list(batches)
    labels = [batch.targets for batch in batches]
    if any(each is None for each in labels):
        raise DataError("Samples of each class are wanted, and these have no labels.")
    if not all(
        isinstance(each, Tensor) and each.ndim == 1 and not each.is_floating_point() for each in labels
    ):
        raise DataError(
            "Samples of each class are wanted, and the labels are no classes. Use `--method-arg per_class=0`."
        )
    every = torch.cat(labels).cpu()
    chosen = torch.cat([(every == each).nonzero().flatten()[:per_class] for each in every.unique()])
    fewest = int(every[chosen].unique(return_counts=True)[1].min())
    if fewest < per_class:
        raise DataError(
            f"{per_class} samples of each class are wanted, and of one there are only {fewest} among "
            f"{len(every):,}. Raise `--score-batches`, or lower `--method-arg per_class`."
        )
    order = chosen.sort().values.tolist()
    parts, start = [], 0
    for batch in batches:
        inside = [index - start for index in order if start <= index < start + batch.samples]
        if inside:
            taken = batch.taken(inside)
            parts.append((taken.inputs, taken.targets))
        start += batch.samples
    return list(micro_batches(parts, batches[0].samples))
