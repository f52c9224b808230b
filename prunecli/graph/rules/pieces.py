"""Putting tensors side by side and taking them apart: cat, stack, split, slice, select."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import FROZEN_ATOM, UNIFORM, Atoms, Label


@rule_for("cat", "concat", "_cat")
def cat(call: Call) -> None:
    """Lay labels end to end; elsewhere the operands are tied."""
    tensors = [t for t in call.args[0] if t.dim() == call.out.dim() and t.numel()]
    axis = call.argument("dim", 0) % call.out.dim()
    labels: list[Label] = []
    for dim in range(call.out.dim()):
        along = [call.labels(tensor)[dim] for tensor in tensors]
        if dim == axis:
            labels.append(_end_to_end(along, [tensor.shape[dim] for tensor in tensors]))
        else:
            labels.append(call.tie(along))
    call.put(labels)


@rule_for("stack")
def stack(call: Call) -> None:
    """Lay tensors along a new dimension, whose positions belong to nothing."""
    tensors = call.args[0]
    axis = call.argument("dim", 0) % call.out.dim()
    labels = [call.tie([call.labels(tensor)[dim] for tensor in tensors]) for dim in range(tensors[0].dim())]
    call.put([*labels[:axis], None, *labels[axis:]])


@rule_for(
    "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "split_copy", takes_size=True
)
def split(call: Call) -> None:
    """Take a tensor apart. Pieces of equal size are tied, as code that says `chunk` needs them equal."""
    source = call.operands[0]
    dim = call.argument("dim", 0) % source.dim()
    label = call.labels(source)[dim]
    sizes = [piece.shape[dim] for piece in call.out]
    if isinstance(label, np.ndarray) and len(set(sizes)) == 1 and len(sizes) > 1:
        _tie_pieces(call, label, sizes[0])
    start = 0
    for piece, size in zip(call.out, sizes, strict=True):
        _put_slice(call, source, piece, dim, slice(start, start + size))
        start += size


@rule_for("slice", "slice_copy", takes_size=True)
def slice_(call: Call) -> None:
    """Take a range. One of several ranges of equal size is tied to the others."""
    source = call.operands[0]
    dim = call.argument("dim", 0) % source.dim()
    label, length = call.labels(source)[dim], source.shape[dim]
    start, stop, step = slice(call.argument("start"), call.argument("end"), call.argument("step", 1)).indices(
        length
    )
    size = call.out.shape[dim]
    if isinstance(label, np.ndarray) and 0 < size < length:
        if step == 1 and length % size == 0 and start % size == 0:
            _tie_pieces(call, label, size)
        elif step != 1:
            call.freeze(label, "is sliced with a step")
    _put_slice(call, source, call.out, dim, slice(start, stop, step))


@rule_for("select", "unbind", "select_copy", "unbind_copy")
def select(call: Call) -> None:
    """Take single positions: code that counts them cannot lose one."""
    source = call.operands[0]
    dim = call.argument("dim", 0) % source.dim()
    call.freeze(call.labels(source)[dim], "is indexed by a fixed position")
    rest = [label for place, label in enumerate(call.labels(source)) if place != dim]
    for piece in call.results():
        call.put(rest, tensor=piece)


def _end_to_end(labels: Sequence[Label], lengths: Sequence[int]) -> Label:
    if all(label is UNIFORM for label in labels):
        return None if len(labels) > 1 else UNIFORM
    if not any(isinstance(label, np.ndarray) for label in labels):
        return None
    return np.concatenate(
        [
            label if isinstance(label, np.ndarray) else np.full(length, FROZEN_ATOM)
            for label, length in zip(labels, lengths, strict=True)
        ]
    )


def _tie_pieces(call: Call, label: Atoms, size: int) -> None:
    pieces = label.reshape(-1, size)
    reason = call.reason("is split into equal pieces, one of which cannot be cut")
    for piece in pieces[1:]:
        call.tracer.constraints.tie(np.ascontiguousarray(pieces[0]), np.ascontiguousarray(piece), reason)


def _put_slice(call: Call, source: Tensor, piece: Tensor, dim: int, part: slice) -> None:
    labels = list(call.labels(source))
    label = labels[dim]
    if isinstance(label, np.ndarray) and piece.shape[dim] != label.size:
        label = labels[dim] = label[part]
        call.tracer.path.picks.append(label)
    call.put(labels, tensor=piece)
