"""Micro-batch -> squared Jacobians of the outputs in single weights, sample by sample, never all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from prunecli.errors import ScoreError
from prunecli.graph.calls import CallWatch, following
from prunecli.graph.outputs import tensors_in
from prunecli.graph.structure import CallKey
from prunecli.graph.trace import plain_kernels
from prunecli.importance.curvature import bytes_kept, flattened
from prunecli.importance.gradients import call_model, explained, read_by_forward
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import require_gradients
from prunecli.weights.layers import LayerCall, names_of_parameters
from prunecli.weights.network import Network

Bends = Callable[[Tensor, MicroBatch], tuple[Tensor, Tensor]]
"""(output, samples) -> by how much the loss bends [samples, kept], and where to [samples, outputs, kept]."""

_PARTS = 4
"""Activations of samples that run together take such a part of the memory, and so do their Jacobians."""
_BUSY = 2**24
"""So many bytes of Jacobians at a time at most, which caches like."""


def squared_jacobians(network: Network, batch: MicroBatch, bends: Bends, where: str) -> dict[str, Tensor]:
    """Return the sum over samples b and directions u of l_bu (d(u . output_b) / dw)^2 for each weight w.

    For a layer whose calls see one sample per row, what each sample adds is made of the layer's data and
    the gradient of its output, which one backward pass per direction finds for all samples. A weight
    that is used in any other way gets a pass per sample.

    Raises:
        ScoreError: The model fails, or its output is no tensor of few enough numbers per sample.
    """
    totals = {name: torch.zeros_like(each, dtype=torch.float64) for name, each in network.weights.items()}
    with explained(where), plain_kernels():
        alike, others = _sorted_by_use(network, batch)
        if alike:
            for part in _parts(network, batch, alike):
                _add_rows(network, part, bends, alike, totals, where)
        for index in range(batch.samples) if others else ():
            _add_one(network, batch.cut(index, index + 1), bends, others, totals, where)
    return totals


@dataclass(frozen=True, eq=False)
class _Row:
    """A call of a layer with a sample per row, and what is added to its output: zeros, to be followed."""

    name: str
    layer: LayerCall
    added: Tensor


class _Watch(CallWatch):
    """Runs forward, and follows the outputs of layers.

    Args:
        modules: The names of the modules that are running; see `following`.
        names: Id of a parameter -> its name.
        wanted: Which of them to follow.
        samples: How many samples run.
    """

    def __init__(
        self, modules: Sequence[str], names: Mapping[int, str], wanted: set[str], samples: int
    ) -> None:
        super().__init__(modules)
        self.names = {place: name for place, name in names.items() if name in wanted}
        self.samples, self.rows = samples, list[_Row]()
        self.otherwise: set[str] = set()
        """Weights that something else reads."""

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call."""
        layer = LayerCall.of(func, args, kwargs)
        read = {self.names[id(each)] for each in tensors_in((args, kwargs)) if id(each) in self.names}
        result = func(*args, **kwargs)
        if layer is not None and id(layer.weight) in self.names and self._is_by_row(layer, result):
            name = self.names[id(layer.weight)]
            added = torch.zeros_like(result, requires_grad=True)
            self.rows.append(_Row(name, layer, added))
            self.otherwise |= read - {name}
            return result + added
        if tensors_in(result):
            self.otherwise |= read
        return result

    def _is_by_row(self, layer: LayerCall, result: Tensor) -> bool:
        has_rows = layer.data.dim() >= 2 and layer.data.dim() >= layer.weight.dim()
        return has_rows and len(layer.data) == len(result) == self.samples


def _sorted_by_use(network: Network, batch: MicroBatch) -> tuple[set[str], set[str]]:
    """Return the weights that layers read row by row, and those that are read in another way."""
    samples = min(batch.samples, 3)  # another number than most sizes
    part = batch.cut(0, samples)
    with torch.no_grad():
        watch, _ = _watched(network, part, set(network.weights))
    alike = {row.name for row in watch.rows} - watch.otherwise
    rest = {name: same for name, same in network.twins.items() if name not in alike}
    return alike, read_by_forward(network.model, part, rest) if rest else set()


def _watched(network: Network, batch: MicroBatch, wanted: set[str]) -> tuple[_Watch, Any]:
    names = names_of_parameters(network.model, network.structure)
    with following(network.model) as modules:
        watch = _Watch(modules, names, wanted, batch.samples)
        with watch:
            return watch, call_model(network.model, batch)


def _parts(network: Network, batch: MicroBatch, names: set[str]) -> Iterator[MicroBatch]:
    """Yield parts of the micro-batch whose activations fit into the memory."""
    if "bytes per sample" not in network.known:
        require_gradients(network.model, [])
        one = batch.cut(0, 1)
        network.known["bytes per sample"] = bytes_kept(
            network.model, lambda: _watched(network, one, names)[1]
        )
    step = max(int(network.memory / _PARTS // max(network.known["bytes per sample"], 1)), 1)
    for start in range(0, batch.samples, step):
        yield batch.cut(start, min(start + step, batch.samples))


def _add_rows(
    network: Network, part: MicroBatch, bends: Bends, names: set[str], totals: dict[str, Tensor], where: str
) -> None:
    """Add what a backward pass per direction finds for all samples of a part."""
    require_gradients(network.model, [])
    watch, output = _watched(network, part, names)
    flat = flattened(output, part.samples, where)
    if not flat.requires_grad:
        return  # no weight gets to the outputs
    values, vectors = bends(output, part)
    leaves = [row.added for row in watch.rows]
    by_name = {name: [at for at, row in enumerate(watch.rows) if row.name == name] for name in names}
    for index in range(values.shape[1]):
        direction = vectors[:, :, index].to(flat.dtype)
        slopes = torch.autograd.grad(flat, leaves, direction, retain_graph=True, materialize_grads=True)
        with torch.no_grad():
            for name, places in by_name.items():
                calls = [(watch.rows[at].layer, slopes[at]) for at in places]
                totals[name] += _squares(calls, values[:, index], network.memory)
        network.tell("curvature", index + 1, values.shape[1])


def _squares(calls: list[tuple[LayerCall, Tensor]], factors: Tensor, memory: int) -> Tensor:
    """Return the sum over samples of a factor times the squared Jacobian of a weight that calls share."""
    layer, slope = calls[0]
    if len(calls) == 1 and layer.weight.dim() == 2 and slope.dim() == 2:  # an outer product per sample
        return (factors[:, None] * slope.double().square()).T @ layer.data.double().square()
    size = layer.weight.numel() * layer.weight.element_size()
    step = max(int(min(memory / _PARTS, max(_BUSY, size)) // size), 1)
    total = torch.zeros_like(layer.weight, dtype=torch.float64)
    for start in range(0, len(slope), step):
        part = slice(start, start + step)
        found = torch.stack([_jacobians(each, slopes[part], part) for each, slopes in calls]).sum(0)
        total += torch.einsum("b,b...->...", factors[part], found.double().square())
    return total


def _jacobians(layer: LayerCall, slopes: Tensor, part: slice) -> Tensor:
    """Return what each sample adds to the gradient of a layer's weight: [samples, *weight]."""

    def of_one(data: Tensor, slope: Tensor) -> Tensor:
        back = vjp(lambda weight: layer.product(data[None], weight), layer.weight.detach())[1]
        found: Tensor = back(slope[None])[0]
        return found

    every: Tensor = vmap(of_one)(layer.data.detach()[part], slopes)
    return every


def _add_one(
    network: Network, one: MicroBatch, bends: Bends, names: set[str], totals: dict[str, Tensor], where: str
) -> None:
    """Add what one sample says of weights that no layer reads row by row."""
    leaves = {name: network.twins[name] for name in sorted(names)}
    flat_leaves = [each for same in leaves.values() for each in same]
    require_gradients(network.model, flat_leaves)
    output = call_model(network.model, one)
    flat = flattened(output, 1, where)
    if not flat.requires_grad:
        raise ScoreError(
            f"{where}: the output does not depend on {', '.join(f'`{name}`' for name in leaves)}."
        )
    values, vectors = bends(output, one)
    for index in range(values.shape[1]):
        direction = vectors[:, :, index].to(flat.dtype)
        found = iter(
            torch.autograd.grad(flat, flat_leaves, direction, retain_graph=True, materialize_grads=True)
        )
        for name, same in leaves.items():
            jacobian = sum(next(found).double() for _ in same)
            totals[name] += values[0, index] * torch.square(jacobian)  # type: ignore[arg-type]
