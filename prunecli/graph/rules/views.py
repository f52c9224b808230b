"""Moving indices around: views, permutations, repetitions, shuffles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import UNIFORM, Label
from prunecli.graph.findings import label_arrays
from prunecli.graph.regroup import regroup, spread


@rule_for("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", takes_size=True)
def view(call: Call) -> None:
    """Regroup dimensions without moving elements. A view as another dtype of the same width moves nothing."""
    source = call.operands[0]
    call.put(regroup(call.tracer.constraints, call.labels(source), source.shape, call.out.shape))


@rule_for("permute", "transpose", "t", "unsqueeze", "squeeze", "alias", "movedim", "numpy_T", "adjoint", "mT")
def rearrange(call: Call) -> None:
    """Carry each dimension to where the operation puts it, found by running it on their numbers."""
    source = call.operands[0]
    moved = _order_of_dimensions(call, source.dim())
    labels = call.labels(source)
    call.put([None if dim is None else labels[dim] for dim in moved])


@rule_for("expand", "expand_copy", takes_size=True)
def expand(call: Call) -> None:
    """Broadcast: a dimension that was stretched holds the same thing everywhere."""
    source = call.operands[0]
    labels: list[Label] = [UNIFORM] * (call.out.dim() - source.dim())
    for length, new_length, label in zip(
        source.shape, call.out.shape[len(labels) :], call.labels(source), strict=True
    ):
        labels.append(label if length == new_length else UNIFORM)
    call.put(labels)


@rule_for(
    "roll", "flip", "repeat", "tile", "unfold", "unfold_copy", "diagonal", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "rot90", "repeat_interleave", takes_size=True,
)  # fmt: skip
def run_on_labels(call: Call) -> None:
    """Run the same operation on the atoms and read along which dimensions they vary."""
    source = call.operands[0]
    if call.name == "roll":
        _freeze_rolled(call, source)
    result: list[Label] = [None] * call.out.dim()
    if call.name in {"repeat", "tile"}:
        lengths = [1] * (call.out.dim() - source.dim()) + list(source.shape)
        result = [UNIFORM if length == 1 else None for length in lengths]
    for dim, label in enumerate(call.labels(source)):
        if isinstance(label, np.ndarray):
            spaced = label.reshape([-1 if other == dim else 1 for other in range(source.dim())])
            cells = _run(call, np.broadcast_to(spaced, tuple(source.shape)))
            for place, found in enumerate(spread(call.tracer.constraints, cells)):
                result[place] = _joined(call, result[place], found)
    if call.name.startswith("pixel"):
        for place in (-1, -2):
            call.freeze(result[place], "is a place in the image", expected=True)
            result[place] = None
    call.put(result)


@rule_for("as_strided")
def as_strided(call: Call) -> None:
    """A view by strides: understood only where it changes nothing."""
    source = call.operands[0]
    same = source.shape == call.out.shape and source.stride() == call.out.stride()
    if not same:
        for label in label_arrays(call.labels(source)):
            call.freeze(label, "is addressed by strides")
    call.put(call.labels(source) if same else (None,) * call.out.dim())


def _freeze_rolled(call: Call, source: Tensor) -> None:
    """Rolling by a fixed number of positions means something else once some are gone."""
    dims = call.argument("dims") or range(source.dim())
    for dim in [dims] if isinstance(dims, int) else dims:
        call.freeze(call.labels(source)[dim], "is rolled along")


def _joined(call: Call, old: Label, new: Label) -> Label:
    """Two labels that landed on one dimension: a position goes when either goes."""
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        return new if isinstance(new, np.ndarray) else old
    rows, row_of = np.unique(old, return_inverse=True)
    columns, column_of = np.unique(new, return_inverse=True)
    return call.tracer.constraints.merge([rows, columns])[row_of, column_of]


def _run(call: Call, cells: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers = torch.from_numpy(cells.astype(np.float64))
    moved = call.func(numbers, *call.args[1:], **call.kwargs)
    return np.asarray(moved.numpy()).astype(np.int64)


def _order_of_dimensions(call: Call, count: int) -> Sequence[int | None]:
    """Return for each dimension of the result the dimension it came from; None for a new one."""
    source = call.operands[0]
    if call.name == "alias":
        return range(count)
    lengths = [1 if length == 1 else dim + 2 for dim, length in enumerate(source.shape)]
    probe = torch.empty(lengths, device="meta")
    moved = call.func(probe, *call.args[1:], **call.kwargs)
    return [None if length == 1 else length - 2 for length in moved.shape]
