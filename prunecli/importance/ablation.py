"""What the loss is without each unit: the network itself is asked, not an approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils._pytree import tree_map_only

from prunecli.errors import ScoreError
from prunecli.graph.calls import following
from prunecli.graph.outputs import tensors_in
from prunecli.graph.structure import Group
from prunecli.graph.trace import plain_kernels
from prunecli.importance.gates import Gating, find_places, gate_sites, reading_sites
from prunecli.importance.gradients import call_model, checked_loss, explained
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.replay import CannotReplayError, Finding, Recorder, Recording, Replay

if TYPE_CHECKING:
    from prunecli.importance.look import Look

_ROUNDING = 128
"""How far outputs may be from those of a whole forward pass, in units of the precision of the largest."""


class Way(Enum):
    """How variants are run, the fastest first."""

    AT_READERS = "at readers"  # units are off where layers read them: these subtract what the units gave
    AT_GATES = "at gates"  # what follows the gates is computed again
    WHOLE = "whole"  # the forward pass is computed again


class Ablation:
    """Switches units of one micro-batch off; in parts, where the activations of all do not fit into memory.

    Args:
        look: The micro-batch.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        step = _samples_at_once(look)
        starts = range(0, look.batch.samples, step)
        self._parts = [look.batch.cut(start, min(start + step, look.batch.samples)) for start in starts]
        self._latest: tuple[int, Run] | None = None
        with torch.no_grad(), explained(look.where):
            self.dense = self._mean(lambda run: run.dense)
            """The mean loss with all units on."""

    def changes(self, group: Group, masks: Float64[Tensor, "variants width"]) -> Float64[Tensor, " variants"]:
        """Return by how much the mean loss rises under each mask (0 = the unit is off)."""
        with torch.no_grad(), explained(self.look.where):
            changes: Tensor = self._mean(lambda run: run.changes(group, masks))
        return changes

    def _mean(self, find: Callable[[Run], Any]) -> Any:
        """Return the mean over parts, weighted by their samples. Only one recording is kept."""
        total = 0.0
        for number, part in enumerate(self._parts):
            if self._latest is None or self._latest[0] != number:
                self._latest = None  # gone before the next one is made
                self._latest = (number, Run(self.look, part))
            total += find(self._latest[1]) * (part.samples / self.look.batch.samples)
        return total


class Run:
    """Runs samples with units switched off, again and again. Under `torch.no_grad`.

    Args:
        look: How the model is run.
        batch: The samples, all or some of the micro-batch.
    """

    def __init__(self, look: Look, batch: MicroBatch) -> None:
        self.look, self.conditions, self.batch = look, look.conditions, batch
        with following(look.conditions.model) as modules, plain_kernels():
            output = self._whole(modules, {})
        self.dense = checked_loss(look.loss(output, batch), look.where).double().item()
        self.recording = self._record(output)
        self._total, self._largest = self.recording.bytes() if self.recording is not None else (0, 0)

    @property
    def _first_parameter(self) -> Tensor:
        return next(p for p in self.conditions.model.parameters() if p.is_floating_point())

    @property
    def bytes_recorded(self) -> int:
        """How much memory the recording takes."""
        return self._total

    def changes(self, group: Group, masks: Float64[Tensor, "variants width"]) -> Float64[Tensor, " variants"]:
        """Return by how much the mean loss of the samples rises under each mask (0 = the unit is off)."""
        found: list[Tensor] = []
        gates = masks.to(self._first_parameter)
        way = self._way_for(group)
        for outputs in self._outputs(way, group, gates):
            found += [self.look.loss(output, self.batch) for output in outputs]
            stage = f"oracle, batch {self.look.number + 1}, {group.name}"
            self.conditions.tell(stage, len(found), len(masks))
        return torch.stack(found).double().cpu() - self.dense

    def _way_for(self, group: Group) -> Way:
        """Return the fastest way that agrees with whole forward passes, tried once per group."""
        if self.recording is None:
            return Way.WHOLE
        known: dict[str, Way] = self.conditions.known.setdefault("ways", {})
        if group.name not in known:
            odd = torch.arange(group.width).to(self._first_parameter) % 2
            probes = torch.stack([odd, 1 - odd])
            expected = [output for outputs in self._outputs(Way.WHOLE, group, probes) for output in outputs]
            ways = (way for way in Way if way is Way.WHOLE or self._agrees(way, group, probes, expected))
            known[group.name] = next(ways)
        return known[group.name]

    def _agrees(self, way: Way, group: Group, gates: Tensor, expected: Sequence[Any]) -> bool:
        """Return whether a way gives the outputs expected; one that fails does not."""
        try:
            found = [output for outputs in self._outputs(way, group, gates) for output in outputs]
        except (RuntimeError, ScoreError):
            return False  # the whole pass will say what is wrong, if it is not just the way
        pairs = [(tensors_in(one), tensors_in(other)) for one, other in zip(found, expected, strict=True)]
        return all(len(one) == len(other) > 0 and all(map(_close, one, other)) for one, other in pairs)

    def _outputs(self, way: Way, group: Group, gates: Tensor) -> Iterator[list[Any]]:
        """Yield what the model puts out under some rows of gates, then under some more."""
        places = find_places([group], reading_sites if way is Way.AT_READERS else gate_sites)
        with following(self.conditions.model) as modules, plain_kernels():
            for some in gates.split(self._at_once(way)):
                if way is Way.WHOLE or self.recording is None:
                    yield [self._whole(modules, {group.name: gate}) for gate in some]
                    continue
                replay = Replay(modules, places, {group.name: some}, self.batch.samples, self.recording)
                with replay:
                    output = call_model(self.conditions.model, self.batch)
                yield list(_variants(output, replay, self.batch.samples))

    def _whole(self, modules: Sequence[str], gates: Mapping[str, Tensor]) -> Any:
        """Run the whole forward pass with units off."""
        with Gating(modules, self.conditions.places, gates, self.batch.samples):
            return call_model(self.conditions.model, self.batch)

    def _record(self, output: Any) -> Recording | None:
        """Record the dense pass; None if the code of the model does not allow it."""
        known = self.conditions.known
        if known.get("replay") is False or self.conditions.mixes_samples:
            return None
        recording = Recording(tensors_in(self.batch.inputs))
        recorded: Any = None
        try:
            for watch in (Finding, Recorder):
                with following(self.conditions.model) as modules, plain_kernels(), watch(modules, recording):
                    recorded = call_model(self.conditions.model, self.batch)
        except CannotReplayError:
            known["replay"] = False
            return None
        one, other = tensors_in(output), tensors_in(recorded)
        known["replay"] = len(one) == len(other) > 0 and all(map(torch.equal, one, other))
        return recording if known["replay"] else None

    def _at_once(self, way: Way) -> int:
        """Return how many variants run together: as many as fit; one on a CPU, where more are slower."""
        if way is Way.WHOLE or next(self.conditions.model.parameters()).device.type == "cpu":
            return 1
        return max((self.conditions.memory - self._total) // max(4 * self._largest, 1), 1)


def _samples_at_once(look: Look) -> int:
    """Return of how many samples the recording fits into memory."""
    known, samples = look.conditions.known, look.batch.samples
    if look.conditions.mixes_samples:
        return samples
    if samples > 1 and "bytes recorded" not in known:
        with torch.no_grad(), explained(look.where):
            known["bytes recorded"] = Run(look, look.batch.cut(0, 1)).bytes_recorded
    recorded: int = known.get("bytes recorded", 0)
    return max(min(look.conditions.memory // max(recorded, 1), samples), 1)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or not expected.is_floating_point() or not expected.numel():
        return torch.equal(found, expected)
    allowed = _ROUNDING * torch.finfo(expected.dtype).eps * expected.abs().max()
    return bool((found - expected).abs().max() <= allowed)


def _variants(output: Any, replay: Replay, samples: int) -> Iterator[Any]:
    """Take the outputs of the variants apart; where none changed, all are the dense one."""
    changed = replay.changed.any_of(tensors_in(output))
    for variant in range(replay.variants):
        rows = slice(variant * samples, (variant + 1) * samples)
        yield tree_map_only(Tensor, lambda tensor: tensor[rows], output) if changed else output  # noqa: B023
