"""`activation`: how large a weight is, times how strongly the unit it belongs to is active."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from prunecli.errors import ScoreError
from prunecli.graph.calls import CallWatch, following
from prunecli.graph.structure import CallKey
from prunecli.graph.trace import plain_kernels
from prunecli.importance.gradients import call_model, explained, read_by_forward
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.layers import LayerCall, Layout, names_of_parameters
from prunecli.weights.network import Network, WeightScores, samples_in, zeros_like

_RECTIFIERS = frozenset({"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "threshold", "threshold_"})
_ON_THE_WAY = frozenset(
    {
        "batch_norm", "dropout", "dropout1d", "dropout2d", "dropout3d", "identity", "contiguous",
        "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    }
)  # fmt: skip
"""What may stand between a layer and its ReLU: each unit goes through it by itself, and stays in place."""


class Side(str, Enum):
    """Which units' activations count."""

    OUTPUT = "output"  # what the layer's own units become
    INPUT = "input"  # what the layer reads


@method(
    "activation",
    needs=Needs.PARAMETERS | Needs.ACTIVATIONS,
    source="Blalock et al., 2020, magnitude times activation",
    passes="1",
    granularity=Granularity.WEIGHT,
)
@dataclass(frozen=True)
class Activation:
    """Size of the weight times the mean activation of its unit.

    score = |w| a, with a = mean over places of |mean over samples of the activation|: of the output unit
    that the weight makes (side=output), behind the next ReLU, which may follow a batch normalisation or a
    pooling, or raw where none follows; or of the input unit that it reads (side=input, as published code
    has it). Samples are averaged before the absolute value is taken, so that signed values cancel. With
    side=output, weights of one unit differ in |w| only: layers lose whole units.
    """

    side: Annotated[Side, "Whose activation counts: of the unit a weight makes, or of the one it reads."] = (
        Side.OUTPUT
    )

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the products.

        Raises:
            ScoreError: The model fails, or reads a weight by no layer's call.
            DataError: There is no sample.
            PeerError: Another process is gone.
        """
        sums = _Sums(network, self.side, samples_in(batches))
        for number, batch in network.own(batches):
            sums.add(batch, number)
            network.tell("scoring", number + 1, 0)
        sums.hear_of_others()
        scores = zeros_like(network)
        unread = {name: same for name, same in network.twins.items() if name not in sums.layouts}
        for name in sorted(read_by_forward(network.model, batches[0].cut(0, 1), unread) if unread else ()):
            raise ScoreError(
                f"`activation` finds no linear layer or convolution that reads `{name}` as it is. Leave it "
                f"alone with `--ignore {name}`, or use a method that looks at weights only."
            )
        for name, layout in sums.layouts.items():
            weight, means = network.weights[name], sums.means(name)
            over = layout.over_outputs if self.side is Side.OUTPUT else layout.over_inputs
            scores[name] = weight.abs() * over(means, weight)
        return scores


class _Sums:
    """Activations of units, added up over samples, per call of each layer and place."""

    def __init__(self, network: Network, side: Side, samples: int) -> None:
        self.network, self.side, self.samples = network, side, samples
        names = names_of_parameters(network.model, network.structure)
        self.names = {place: name for place, name in names.items() if name in network.twins}
        self.layouts: dict[str, Layout] = {}
        self.sums: dict[tuple[str, int], Tensor] = {}
        """Weight, and which call of it -> [units, places]."""

    def add(self, batch: MicroBatch, number: int) -> None:
        """Run forward on a micro-batch and add what is seen."""
        model = self.network.model
        where = f"Batch {number} (inputs {batch.describe()})"
        with torch.no_grad(), explained(where), plain_kernels(), following(model) as modules:
            watch = _Watch(modules, self.names, self.side)
            with watch:
                call_model(model, batch)
        for key, (layout, total) in watch.seen.items():
            self.layouts[key[0]] = layout
            self._add(key, total, where)

    def hear_of_others(self) -> None:
        """Add up what all processes saw.

        Raises:
            PeerError: One of them is gone.
            ScoreError: Samples are of several sizes.
        """
        peers = self.network.peers
        if not peers.are_several:
            return
        own, self.sums = self.sums, {}
        for rank, (layouts, sums) in enumerate(peers.heard((self.layouts, _on(own, "cpu")))):
            self.layouts = {**self.layouts, **layouts}
            for key, total in _on(sums, next(self.network.model.parameters()).device).items():
                self._add(key, total, f"The batches of process {rank}")

    def _add(self, key: tuple[str, int], total: Tensor, where: str) -> None:
        if key in self.sums and self.sums[key].shape != total.shape:
            raise ScoreError(
                f"{where}: `{key[0]}` has {list(total.shape)} units and places, and "
                f"{list(self.sums[key].shape)} before. Bring all samples to one size."
            )
        self.sums[key] = self.sums[key] + total if key in self.sums else total

    def means(self, name: str) -> Tensor:
        """Return a number per unit: mean over samples, absolute value, mean over places, mean over calls."""
        calls = [(each / self.samples).abs().mean(1) for (of, _), each in self.sums.items() if of == name]
        return torch.stack(calls).mean(0)


def _on(sums: Mapping[tuple[str, int], Tensor], device: Any) -> dict[tuple[str, int], Tensor]:
    return {key: each.to(device) for key, each in sums.items()}


class _Watch(CallWatch):
    """Runs forward and adds up over samples what each layer reads, or what becomes of what it makes."""

    def __init__(self, modules: Sequence[str], names: Mapping[int, str], side: Side) -> None:
        super().__init__(modules)
        self.names, self.side = names, side
        self.seen: dict[tuple[str, int], tuple[Layout, Tensor]] = {}
        self._pending: Any = WeakIdKeyDictionary()
        """Outputs of layers, no ReLU met yet -> whose they are, and their dimension of units."""

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call."""
        layer = LayerCall.of(func, args, kwargs)
        name = self.names.get(id(layer.weight)) if layer else None
        if layer is not None and name is not None:
            place = (name, sum(1 for of, _ in self.seen if of == name))
            self.seen[place] = (layer.layout, _over_samples(layer.data, layer.dim))
            result = func(*args, **kwargs)
            if self.side is Side.OUTPUT:  # raw, until a ReLU is met
                self.seen[place] = (layer.layout, _over_samples(result, layer.dim))
                self._pending[result] = (place, layer.dim)
            return result
        operand = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        pending = self._pending.get(operand) if isinstance(operand, Tensor) else None
        result = func(*args, **kwargs)
        if pending is not None and isinstance(result, Tensor):
            if key.function in _RECTIFIERS:
                place, dim = pending
                self.seen[place] = (self.seen[place][0], _over_samples(result, dim))
                self._pending.pop(operand, None)
            elif key.function in _ON_THE_WAY:
                self._pending[result] = pending
        return result


def _over_samples(activation: Tensor, dim: int) -> Tensor:
    """Return the sum over samples, the first dimension, of units that lie along `dim`: [units, places]."""
    by_unit = activation.double().movedim(dim, -1).sum(0)
    return by_unit.reshape(-1, by_unit.shape[-1]).T
