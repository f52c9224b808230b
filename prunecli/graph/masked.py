"""The masked dense model: every slice of the removed units is zero, and statistics leave them out.

This is what surgery is measured against. It runs the dense network, with dense shapes, and knows of
the cut only through a mask over the entries of its parameters, which it carries along as labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from prunecli.graph.borrowing import run_without_noise
from prunecli.graph.call import Call
from prunecli.graph.constraints import Atoms, Constraints, Label, Labels, Reason
from prunecli.graph.copying import named_tensors
from prunecli.graph.findings import Tag, label_arrays
from prunecli.graph.structure import Kept, Structure
from prunecli.graph.trace import Args, Kwargs, run
from prunecli.graph.tracer import Tracer
from prunecli.on_demand import OnDemand

STATISTICS: Final = frozenset(
    {
        "sum", "mean", "nanmean", "nansum", "prod", "amax", "amin", "var", "std", "var_mean", "std_mean",
        "logsumexp", "linalg_vector_norm", "norm", "any", "all", "aminmax", "max", "min", "median",
        "native_layer_norm", "rms_norm", "_fused_rms_norm", "native_group_norm", "_weight_norm_interface",
        
        "_cdist_forward", "_euclidean_dist", "native_batch_norm", "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional",
    }
)  # fmt: skip
"""Operations that run over kept positions only."""

_TURNS: Final = frozenset({"t", "transpose", "permute"})

CONTRACTIONS: Final = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "mv", "dot"})


def run_masked(model: nn.Module, structure: Structure, kept: Kept, args: Args, kwargs: Kwargs) -> Any:
    """Run `model` with the units that are not kept masked, and return its outputs.

    The parameters of `model` are changed in place: pass a copy (see `trace.prepare`).
    """
    masks = _Masks()
    tensors = named_tensors(model)
    labels = {name: masks.label(tensor, name, structure, kept) for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            masks.zero(tensor, labels[name])
    parameters = [name for name, _ in model.named_parameters()]
    return run(_MaskedRun(masks, tensors, labels, parameters), model, args, kwargs)


class _Masks(Constraints):
    """Instead of collecting statements, knows of each atom whether it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = np.zeros(1024, dtype=bool)

    def fresh(self, length: int) -> Atoms:
        atoms = super().fresh(length)
        if self.count > self.gone.size:
            self.gone = np.concatenate([self.gone, np.zeros(max(self.count, self.gone.size), dtype=bool)])
        return atoms

    def tie(self, left: Atoms, right: Atoms, reason: Reason) -> None:
        """Nothing is left to find out."""

    def freeze(self, atoms: Atoms, reason: Reason) -> None:
        """Nothing is left to find out."""

    def split(self, cells: NDArray[np.int64]) -> list[Atoms]:
        parts = super().split(cells)
        gone = self.gone[cells]
        for dim, part in enumerate(parts if cells.ndim > 1 else ()):
            self.gone[part] = gone.all(axis=tuple(other for other in range(cells.ndim) if other != dim))
        self.grids.clear()
        return parts

    def merge(self, labels: list[Atoms]) -> NDArray[np.int64]:
        cells = super().merge(labels)
        gone = np.zeros(cells.shape, dtype=bool)
        for dim, label in enumerate(labels):
            gone |= self.gone[label].reshape([-1 if other == dim else 1 for other in range(cells.ndim)])
        self.gone[cells] = gone
        self.grids.clear()
        return cells

    def label(self, tensor: Tensor, name: str, structure: Structure, kept: Kept) -> Labels:
        """Label a parameter or buffer with new atoms, gone where the plan says so."""
        labels: list[Label] = []
        described = structure.tensors.get(name)
        fits = described is not None and described.shape == tuple(tensor.shape)
        for dim, length in enumerate(tensor.shape):
            axis = described.axes[dim] if described is not None and fits else None
            if length == 1:
                labels.append(None)
                continue
            atoms = self.fresh(length)
            if axis is not None:
                self.gone[atoms] = ~axis.kept(kept)
            labels.append(atoms)
        return tuple(labels)

    def stays(self, label: Label) -> NDArray[np.int64] | None:
        """Return the positions of a dimension that stay, or None if all do."""
        if not isinstance(label, np.ndarray) or not self.gone[label].any():
            return None
        return np.flatnonzero(~self.gone[label])

    def zero(self, tensor: Tensor, labels: Labels) -> None:
        """Set what is gone to zero, in place."""
        for dim, label in enumerate(labels):
            if self.stays(label) is not None:
                gone = np.flatnonzero(self.gone[np.asarray(label)])
                tensor.index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0)


class _MaskedRun(Tracer):
    """Carries the masks through a forward pass and keeps statistics to what stays."""

    takes_shortcuts = skips_repeats = False

    def __init__(
        self,
        masks: _Masks,
        tensors: Mapping[str, Tensor],
        labels: Mapping[str, Labels],
        parameters: Iterable[str],
    ) -> None:
        super().__init__(masks, tensors, labels, parameters)
        self.masks = masks
        self.masked = {_memory_of(tensor) for tensor in tensors.values()} - {None}
        """Where the parameters are, which have their zeros."""
        self.views = WeakIdKeyDictionary()
        """Parameters that were read on demand, and turned: they have their zeros, too."""

    def execute(self, call: Call) -> Any:
        if call.name in CONTRACTIONS:
            call.args = tree_map_only(Tensor, self._masked_weight, call.args)
        result = run_without_noise(call.func, call.args, call.kwargs)
        if call.name in _TURNS and isinstance(call.args[0], OnDemand):
            self.views[result] = True
        return result

    def finish(self, call: Call) -> None:
        if call.name == "bmm":
            self._mask_both(call)
        reads_data = sum(call.flow(operand).from_data for operand in call.operands[:2]) == 2
        if call.name in STATISTICS or (call.name in CONTRACTIONS and reads_data):
            self._keep_only_what_stays(call)

    def _mask_both(self, call: Call) -> None:
        """Where one operand says which heads are gone, say so of the other too: it repeats shared keys."""
        labels = [self.tag_of(tensor).labels for tensor in call.args]
        masked = [each[0] for each in labels if self.masks.stays(each[0]) is not None]
        if len(masked) != 1:
            return
        result = self.tag_of(call.out)
        self.tag(call.out, replace(result, labels=(masked[0], *result.labels[1:])))
        call.args = tuple(tensor.view_as(tensor) for tensor in call.args)
        for tensor, each in zip(call.args, labels, strict=True):
            self.tag(tensor, Tag((masked[0], *each[1:])))

    def _keep_only_what_stays(self, call: Call) -> None:
        """Compute the result again from the kept positions, and write it over the full one."""
        if not any(
            self.masks.stays(label) is not None
            for operand in call.operands
            for label in label_arrays(call.labels(operand))
        ):
            return
        groups = _group_count(call, self.masks)
        args, kwargs = tree_map_only(Tensor, self._compacted, (call.args, call.kwargs))
        if call.name in SIZED:
            args = SIZED[call.name](args, groups)
        compact = call.func(*args, **kwargs)
        compacts = [compact] if isinstance(compact, Tensor) else [t for t in compact if isinstance(t, Tensor)]
        for result, values in zip(call.results(), compacts, strict=True):
            self._spread(values, result)

    def _masked_weight(self, tensor: Tensor) -> Tensor:
        """Mask a weight that was computed from weights: statistics may have filled what was zero."""
        tag = self.tag_of(tensor)
        if self.name_of(tensor) is not None or not tag.flow.parameters:
            return tensor
        if _memory_of(tensor) in self.masked or tensor in self.views:  # a parameter seen in another way
            return tensor
        masked = tensor.clone()
        self.masks.zero(masked, tag.labels)
        self.tag(masked, tag)
        return masked

    def _compacted(self, tensor: Tensor) -> Tensor:
        for dim, label in enumerate(self.tag_of(tensor).labels):
            stays = self.masks.stays(label)
            if stays is not None:
                tensor = tensor.index_select(dim, torch.from_numpy(stays).to(tensor.device))
        return tensor

    def _spread(self, values: Tensor, result: Tensor) -> None:
        """Write `values` to the kept positions of `result` and zero to the others."""
        for dim, label in enumerate(self.tag_of(result).labels):
            stays = self.masks.stays(label)
            if stays is not None:
                shape = [result.shape[dim] if at == dim else n for at, n in enumerate(values.shape)]
                wide = values.new_zeros(shape)
                values = wide.index_copy(dim, torch.from_numpy(stays).to(wide.device), values)
        result.copy_(values)


def _memory_of(tensor: Tensor) -> int | None:
    """Return where a tensor's values are; None where they are nowhere until they are read."""
    return None if isinstance(tensor, OnDemand) else tensor.untyped_storage().data_ptr()


def _group_count(call: Call, masks: _Masks) -> int:
    """Return how many groups of a group norm keep a channel."""
    if call.name != "native_group_norm":
        return 0
    label, groups = call.labels(call.args[0])[1], int(call.args[6])
    if not isinstance(label, np.ndarray):
        return groups
    return int((~masks.gone[label]).reshape(groups, -1).any(axis=1).sum())


def _layer_norm_args(args: Sequence[Any], _: int) -> tuple[Any, ...]:
    data, normalized_shape, *rest = args
    return (data, list(data.shape[data.dim() - len(normalized_shape) :]), *rest)


def _group_norm_args(args: Sequence[Any], groups: int) -> tuple[Any, ...]:
    data, scale, shift, batch, _, area, _, epsilon = args
    return (data, scale, shift, batch, data.shape[1], area, groups, epsilon)


SIZED: Final[Mapping[str, Callable[[Sequence[Any], int], tuple[Any, ...]]]] = {
    "native_layer_norm": _layer_norm_args,
    "rms_norm": _layer_norm_args,
    "_fused_rms_norm": _layer_norm_args,
    "native_group_norm": _group_norm_args,
}
"""Operations that are told sizes, which follow what stays."""
