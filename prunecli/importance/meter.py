"""Scores one method's way while a model trains: minibatch by minibatch, with the training's own gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import UsageError
from prunecli.graph.structure import Structure
from prunecli.graph.twins import installed as twins_installed
from prunecli.importance.context import Merge, Observed, State, UnitValues
from prunecli.importance.engine import groups_of_parameters
from prunecli.importance.fallback import share_out
from prunecli.importance.gradients import LossFn, filled, find_parameters, loss_gradients
from prunecli.importance.look import Conditions, Look
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Needs, build_methods, find_method
from prunecli.importance.undisturbed import ScoreBN, require_gradients, undisturbed
from prunecli.strict_json import Json

_FREE = Needs.PARAMETERS | Needs.LABELS | Needs.GRADIENTS
"""What a training step has found out already."""


class Meter:
    """Adds up what a method makes of minibatches, as the weights go by.

    A method that needs nothing but gradients costs nothing: it takes those of the training step, read
    before the optimizer moves the weights (METHODS 3). Any other looks at the minibatch again, in the
    model as it stands, and leaves no trace.

    Args:
        model: The model in training.
        structure: Its groups, as they are now.
        method: The name of the method.
        loss_fn: Mean loss of a batch.
        arguments: Arguments of the method.
        seed: For methods that draw random numbers.
        score_bn: Which statistics normalisations use in a second look.
        groups: Names of the groups to score; None: all of them.

    Raises:
        UsageError: The method or an argument is unknown.
        ScoreError: The method cannot score a group.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        method: str,
        loss_fn: LossFn | None,
        arguments: Mapping[str, object] | None = None,
        seed: int = 0,
        score_bn: ScoreBN = ScoreBN.TRAIN,
        groups: Collection[str] | None = None,
    ) -> None:
        self.model, self.structure, self.seed, self.score_bn = model, structure, seed, score_bn
        self.method = build_methods([method], arguments or {})[method]
        self.groups = tuple(
            group for group in groups_of_parameters(structure) if groups is None or group.name in groups
        )
        share_out({method: self.method}, [method], self.groups, None)  # or it cannot score one of them
        names = {member.tensor for group in self.groups for member in self.method.members(group)}
        self.twins = find_parameters(model, structure, names)
        info = find_method(method)
        if not info.while_training:
            raise UsageError(f"`{method}` needs weights that stay as they are; choose another `--method`.")
        self.looks_at_data = info.needs_data
        self.reads_gradients = Needs.GRADIENTS in info.needs
        is_frozen = any(not tensor.requires_grad for same in self.twins.values() for tensor in same)
        self.differentiates = self.reads_gradients and is_frozen
        """Whether training finds no gradient of some parameters, which have one all the same."""
        self.looks_again = self.differentiates or bool(info.needs & ~_FREE)
        self.conditions = Conditions(model, self.groups, loss_fn, score_bn)
        self.total: State | None = None
        self.batches = 0

    def observe(self, batch: MicroBatch) -> None:
        """Add what the method makes of one minibatch, whose gradients the model holds."""
        if not self.looks_at_data:  # the parameters as they are last are what counts
            self.total, self.batches = None, 0
        if self.looks_again:
            seed = self.seed + self.batches
            with (
                undisturbed(self.model, self.score_bn, seed),
                twins_installed(self.model, self.structure.rewritten),
            ):
                self._add(batch, Look(self.conditions, batch, self.batches))
        else:
            self._add(batch, None)
        self.batches += 1

    def scores(self) -> UnitValues:
        """Return one score per unit, from all minibatches since the start; float64, on the CPU."""
        assert self.total is not None, "no minibatch was observed"
        with torch.no_grad():
            found = self.method.finish(self.total, self.batches)
        return {group: values.double().cpu() for group, values in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return what was added up, to be written down."""
        if self.total is None:
            return {}
        return {
            **{f"values.{name}": value for name, value in self.total.values.items()},
            **{f"maxima.{name}": value for name, value in self.total.maxima.items()},
        }

    def plain(self) -> dict[str, Json]:
        """Return the rest of it."""
        return {"batches": self.batches, "merge": self.total.merge.value if self.total else None}

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `plain` gave."""
        self.batches = plain["batches"]
        parts: dict[str, dict[str, Tensor]] = {"values": {}, "maxima": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor
        if plain["merge"] is not None:
            self.total = State(parts["values"], Merge(plain["merge"]), parts["maxima"])

    def _add(self, batch: MicroBatch, look: Look | None) -> None:
        parameters = {name: same[0].detach() for name, same in self.twins.items()}
        gradients = {}
        if look is not None and self.differentiates:
            require_gradients(self.model, [tensor for same in self.twins.values() for tensor in same])
            found = loss_gradients(self.model, batch, look.noted_loss, self.twins, look.where)
            gradients = filled(found, parameters)
        elif self.reads_gradients:
            gradients = self._gradients()
        seen = Observed(self.groups, parameters, gradients, batch.samples, self.seed, look)
        with torch.no_grad():
            state = self.method.observe(seen)
            self.total = state if self.total is None else _beside(self.total, state).merged(state)

    def _gradients(self) -> dict[str, Tensor]:
        """Return the gradients that the model holds; zero, which takes no memory, where there are none."""
        found = {}
        for name, same in self.twins.items():
            parts = [tensor.grad for tensor in same if tensor.grad is not None]
            zero = same[0].detach().new_zeros(()).expand_as(same[0])
            found[name] = sum(parts[1:], parts[0]) if parts else zero
        return found


def _beside(total: State, state: State) -> State:
    """Return what was added up where the new state is: what comes from a file is on the CPU."""
    return State(
        {name: value.to(state.values[name].device) for name, value in total.values.items()},
        total.merge,
        {name: value.to(state.maxima[name].device) for name, value in total.maxima.items()},
    )
