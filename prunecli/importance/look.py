"""One micro-batch through the model, looked at in the ways methods ask for. Each look is taken once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from prunecli.data import main_output
from prunecli.errors import ScoreError
from prunecli.graph.calls import CallWatch, following
from prunecli.graph.structure import CallKey, Group, Site, SiteKind
from prunecli.graph.trace import plain_kernels
from prunecli.importance.ablation import Ablation
from prunecli.importance.curvature import Curvature, Hessian, exact, gauss_newton, hutchinson
from prunecli.importance.fold import by_unit
from prunecli.importance.gates import (
    Gates,
    Gating,
    Place,
    Places,
    find_places,
    ones_for,
    other_path,
    refuse_ungated,
)
from prunecli.importance.gradients import LossFn, call_model, checked_loss, explained
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import ScoreBN, require_gradients

MEMORY = 2 * 2**30
"""Bytes that the activations of one look may take together, unless the user says otherwise."""

Tell = Callable[[str, int, int], None]
"""Hears (what is being done, how much of it is done, how much there is)."""


Journal = Callable[[str, Callable[[], Tensor]], Tensor]
"""Takes a key and a function that finds a tensor; returns what was found under the key, now or before."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A tensor of the forward pass in which units lie, and how the call went on from there."""

    call: CallKey
    tensor: Tensor
    sites: tuple[tuple[Group, Site], ...]
    """Whose units they are, and where."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    func: Callable[..., Any]

    def product(self, data: Tensor, weight: Tensor) -> Tensor:
        """Return what a layer that reads the units makes of other data and another weight, without bias."""
        rest = self.args[3:] if len(self.args) > 2 else ()
        kwargs = {name: value for name, value in self.kwargs.items() if name != "bias"}
        product: Tensor = self.func(data, weight, None, *rest, **kwargs)
        return product

    @property
    def weight(self) -> Tensor:
        """The weight of a layer that reads the units."""
        weight: Tensor = self.args[1]
        return weight.detach()


@dataclass(frozen=True, eq=False)
class Products:
    """Activation times gradient per sample and unit, [samples, width], averaged over places."""

    mean: Tensor
    mean_absolute: Tensor


@dataclass(frozen=True)
class Conditions:
    """What stays the same over the whole sample."""

    model: nn.Module
    groups: tuple[Group, ...]
    loss_fn: LossFn | None
    score_bn: ScoreBN
    memory: int = MEMORY
    tell: Tell = lambda stage, done, total: None
    journal: Journal = lambda key, find: find()
    """Finds what is worth keeping for a run that is interrupted, or finds it again."""
    known: dict[str, Any] = field(default_factory=dict)
    """What a look has learnt of the model that holds for the next micro-batch too."""
    told_apart: dict[int, bool] = field(default_factory=dict)
    """Size of a micro-batch -> whether the gates of each sample change no other; see `Look.told_apart`."""
    is_parted: bool = False
    """Whether its parameters are parted among processes, so that no gradient of them can be taken."""
    losses: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Micro-batch -> its mean loss, where it was looked at, and how many samples it has; until it is over."""

    @cached_property
    def mixes_samples(self) -> bool:
        """Whether normalisations use the statistics of the micro-batch, so that it is not to be split."""
        return mixes_samples(self.model)

    @cached_property
    def gated(self) -> tuple[Group, ...]:
        """The groups that gates can be put on."""
        return tuple(group for group in self.groups if refuse_ungated(group) is None)

    @cached_property
    def places(self) -> Places:
        """Where their gates stand."""
        return find_places(self.gated)


def mixes_samples(model: nn.Module) -> bool:
    """Return whether normalisations use the statistics of a batch, as the model is set now."""
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    return any(norm.training or norm.running_mean is None for norm in norms)


class Look:
    """What can be found out about one micro-batch.

    Args:
        conditions: The model, and how it runs.
        batch: The samples.
        number: Which micro-batch this is, for messages.
    """

    def __init__(self, conditions: Conditions, batch: MicroBatch, number: int) -> None:
        self.conditions, self.batch, self.number = conditions, batch, number
        self._curvatures: dict[tuple[Hessian, int], Curvature] = {}
        self.where = f"Micro-batch {number} (inputs {batch.describe()})"

    @cached_property
    def gate_gradients(self) -> Mapping[str, Tensor]:
        """By group, per sample, the gradient of the micro-batch's mean loss: [samples, width]."""
        return self._gradients_in(self.open_gates(self.batch.samples))

    @cached_property
    def gate_sums(self) -> Mapping[str, Tensor]:
        """By group, the gradient of the micro-batch's mean loss in gates that all samples share: [width]."""
        return self._gradients_in(self.open_gates(None))

    @cached_property
    def gate_products(self) -> Mapping[str, Products]:
        """By group, what activation times gradient is on average over the places of each sample."""
        if not self.conditions.mixes_samples and self.batch.samples not in self.conditions.told_apart:
            _ = self.gate_gradients  # finds out whether samples can be told apart, while no hooks listen
        gates = self.open_gates(self.batch.samples)
        found: dict[str, list[Products]] = {name: [] for name in gates}

        def shown(place: Place, before: Tensor, after: Tensor) -> None:
            activation = before.detach()
            after.register_hook(lambda gradient: collect(place, activation * gradient))

        def collect(place: Place, product: Tensor) -> None:
            # The loss is a mean over samples; what each adds by itself is that many times as much.
            by_sample = (product.double() * self.batch.samples).movedim(place.dim, -1)
            flat = by_sample.reshape(self.batch.samples, -1, place.length)
            for group, site in place.owners:
                found[group.name].append(
                    Products(by_unit(flat.mean(1), group, site), by_unit(flat.abs().mean(1), group, site))
                )

        self._gradients_in(gates, shown)
        none = {name: torch.zeros_like(gate, dtype=torch.float64) for name, gate in gates.items()}
        return {
            name: Products(
                sum((each.mean for each in parts), none[name]),
                sum((each.mean_absolute for each in parts), none[name]),
            )
            for name, parts in found.items()
        }

    def changes_without(self, group: Group, subsets: Int64[Tensor, "subsets width"]) -> Tensor:
        """Return by how much the micro-batch's mean loss rises without each subset (1 = in it) of units."""
        journal = self.conditions.journal
        where = f"{self.number}/{self.batch.digest}"
        dense = journal(where, lambda: torch.tensor(self._ablation.dense, dtype=torch.float64))
        self.note_loss(dense)
        return journal(
            f"{where}/{group.name}/{len(subsets)}",
            lambda: self._ablation.changes(group, 1 - subsets.double()),
        )

    @cached_property
    def _ablation(self) -> Ablation:
        return Ablation(self)

    def answer_energies(self, temperature: float, draws: int, seed: int) -> Mapping[str, Tensor]:
        """By group, the sum over samples of the squared gradient of log p(y) in its gates: [width].

        p is the softmax of the first dimension behind the samples, over `temperature`; y is drawn from it,
        anew for each of the `draws`, whose mean is taken.

        Raises:
            ScoreError: The output is no tensor of logits.
        """
        samples = self.batch.samples
        gates = self.open_gates(samples)
        generator = torch.Generator().manual_seed(seed * 100_003 + self.number)
        total = {name: torch.zeros_like(gate[0], dtype=torch.float64) for name, gate in gates.items()}
        with self.gating(gates) as (watch, output):
            output = main_output(output) if isinstance(output, Mapping) and output else output
            if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != samples:
                found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ScoreError(f"{self.where}: expected logits [{samples}, classes], found {found}.")
            if output.shape[1] < 2:
                raise ScoreError(f"{self.where}: one output is no choice between answers. Use `taylor-fo`.")
            self.check_apart(output, gates, samples)
            logs = (output / temperature).log_softmax(1).movedim(1, -1).reshape(-1, output.shape[1])
            for draw in range(draws):
                drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
                loss = -logs.gather(1, drawn).sum()
                found_gradients = torch.autograd.grad(
                    loss, list(gates.values()), retain_graph=draw + 1 < draws, allow_unused=True
                )
                for name, gradient in zip(gates, found_gradients, strict=True):
                    total[name] += self._reached(watch, name, gradient, gates).square().sum(0) / draws
        return total

    def curvatures(self, hessian: Hessian, draws: int) -> Curvature:
        """Return, by group, the second derivatives of the micro-batch's mean loss in gates: [width]."""
        if (hessian, draws) not in self._curvatures:
            self._curvatures[hessian, draws] = self._find_curvatures(hessian, draws)
        return self._curvatures[hessian, draws]

    def _find_curvatures(self, hessian: Hessian, draws: int) -> Curvature:
        match hessian:
            case Hessian.AUTO | Hessian.EXACT_GN:
                found = gauss_newton(self, only_if_exact=hessian is Hessian.AUTO)
                return exact(self) if found is None else found
            case Hessian.EXACT:
                return exact(self)
            case Hessian.HUTCHINSON:
                return hutchinson(self, draws)

    def visit(self, kind: SiteKind, visitor: Callable[[Seen], None]) -> None:
        """Run forward and call `visitor` wherever units are made, read or rectified, in the order met."""
        places: dict[tuple[CallKey, int | None], list[tuple[Group, Site]]] = {}
        for group in self.conditions.groups:
            for site in group.sites:
                if site.kind is kind:
                    places.setdefault((site.call, site.operand), []).append((group, site))
        model = self.conditions.model
        with torch.no_grad(), explained(self.where), plain_kernels(), following(model) as modules:
            visit = _Visit(modules, places, visitor)
            with visit:
                call_model(model, self.batch)

    def open_gates(self, samples: int | None) -> dict[str, Tensor]:
        """Return open gates for all groups that can have them, per sample or shared."""
        like = next((p for p in self.conditions.model.parameters() if p.is_floating_point()), torch.ones(()))
        return ones_for(self.conditions.gated, samples, like)

    @contextmanager
    def gating(
        self,
        gates: Gates,
        batch: MicroBatch | None = None,
        shown: Callable[[Place, Tensor, Tensor], None] | None = None,
    ) -> Iterator[tuple[Gating, Any]]:
        """Run forward with gates, and yield what was met and the output; explain what fails meanwhile."""
        batch = batch or self.batch
        model = self.conditions.model
        require_gradients(model, [])
        with explained(self.where), torch.enable_grad(), plain_kernels():
            with following(model) as modules:
                watch = Gating(modules, self.conditions.places, gates, batch.samples, shown)
                with watch:
                    output = call_model(model, batch)
            yield watch, output

    def noted_loss(self, output: Any) -> Tensor:
        """Return the mean loss of an output, checked and remembered."""
        return self.note_loss(checked_loss(self.loss(output), self.where))

    def note_loss(self, loss: Tensor) -> Tensor:
        """Remember the mean loss of the micro-batch, and return it."""
        self.conditions.losses[self.number] = (loss.item(), self.batch.samples)
        return loss

    def loss(self, output: Any, batch: MicroBatch | None = None) -> Tensor:
        """Return the mean loss of an output."""
        assert self.conditions.loss_fn is not None  # the engine makes sure of it
        return self.conditions.loss_fn(output, (batch or self.batch).targets)

    def told_apart(self, output: Any, gates: Gates, samples: int) -> bool:
        """Return whether the gates of each sample change its own output only, as far as can be seen.

        They do not where the first dimension is not that of samples, or where samples influence each other.
        """
        known = self.conditions.told_apart
        if samples not in known:
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
            by_sample = [leaf for leaf in leaves if leaf.dim() and len(leaf) % samples == 0]
            first = [leaf[: len(leaf) // samples].sum() for leaf in by_sample]
            known[samples] = len(first) > 0 or not leaves
            if first:
                found = torch.autograd.grad(first, list(gates.values()), retain_graph=True, allow_unused=True)
                known[samples] = not any(bool(each[1:].any()) for each in found if each is not None)
        return known[samples]

    def check_apart(self, output: Any, gates: Gates, samples: int) -> None:
        """Make sure that samples can be told apart where that is to be expected.

        Raises:
            ScoreError: They cannot.
        """
        if not self.conditions.mixes_samples and not self.told_apart(output, gates, samples):
            raise ScoreError(
                f"{self.where}: samples cannot be told apart: activations do not have them in their first "
                "dimension, or they influence each other. Methods that look at single samples need that; "
                "`taylor-fo` and `taylor-so` with `--method-arg hessian=exact` do not."
            )

    def _gradients_in(
        self, gates: Gates, shown: Callable[[Place, Tensor, Tensor], None] | None = None
    ) -> dict[str, Tensor]:
        """Return the gradient of the mean loss in gates, per sample or shared."""
        with self.gating(gates, shown=shown) as (watch, output):
            loss = self.note_loss(checked_loss(self.loss(output), self.where, "a gate"))
            if shown is None and any(gate.dim() > 1 for gate in gates.values()):
                self.check_apart(output, gates, self.batch.samples)
            found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
        named = dict(zip(gates, found, strict=True))
        return {name: self._reached(watch, name, gradient, gates) for name, gradient in named.items()}

    def _reached(self, watch: Gating, name: str, gradient: Tensor | None, gates: Gates) -> Tensor:
        """Return the gradient; zero if forward does not use the group.

        Raises:
            ScoreError: Forward uses the group, but hides it from the gradient.
        """
        if gradient is not None:
            return gradient.detach().double()
        if name in watch.met:
            raise ScoreError(
                f"The gradient of the loss does not reach `{name}`, though forward reads it: something cuts "
                "it off (torch.no_grad, detach). Use a method without gradients, such as `magnitude`."
            )
        return torch.zeros_like(gates[name], dtype=torch.float64)


class _Visit(CallWatch):
    """Shows tensors to a visitor as they come by."""

    def __init__(
        self,
        modules: Any,
        places: Mapping[tuple[CallKey, int | None], list[tuple[Group, Site]]],
        visitor: Callable[[Seen], None],
    ) -> None:
        super().__init__(modules)
        self.places, self.visitor = places, visitor
        self.keys = {key for key, _ in places}

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        if key not in self.keys:
            return func(*args, **kwargs)
        for operand, tensor in enumerate(args):
            self._show(key, operand, tensor, func, args, kwargs)
        result = func(*args, **kwargs)
        self._show(key, None, result, func, args, kwargs)
        return result

    def _show(
        self, key: CallKey, operand: int | None, tensor: Any, func: Any, args: Any, kwargs: Any
    ) -> None:
        sites = self.places.get((key, operand))
        if sites is None:
            return
        for _, site in sites:
            if tensor.dim() < -site.dim or tensor.shape[site.dim] != site.length:
                raise other_path(key, tensor, site.length, site.dim)
        self.visitor(Seen(key, tensor.detach(), tuple(sites), args, kwargs, func))
