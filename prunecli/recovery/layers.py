"""Re-solves the layers of a smaller model, so that each puts out what it does in the dense one.

The asymmetric form of METHODS 6.3, in one forward pass: the smaller model runs on the whole sample, and
when it comes to the end of a layer's chain (the normalisation and the sum that only this layer leads
into), the layer is solved for what the dense model, which runs beside it, has there. What other branches
of the sum have lost is made up for, and the layers that follow read what the solved ones put out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli.graph.borrowing import eval_mode, kept_rng
from prunecli.graph.calls import CallWatch, following
from prunecli.graph.copying import copy_module, named_tensors
from prunecli.graph.structure import CallKey, Kept, Structure
from prunecli.graph.trace import plain_kernels
from prunecli.graph.twins import install
from prunecli.recovery.alongside import Alongside
from prunecli.recovery.chains import IN_PLACE, Chain, find_chains
from prunecli.recovery.regression import Fit, Problem, error_of, solve
from prunecli.recovery.rows import (
    Geometry,
    as_columns,
    as_weight,
    choose_places,
    geometry_of,
    inputs_at,
    map_shape,
    outputs_at,
)

ROWS = 65536
"""Rows of one regression at most; of larger maps some places are taken at random."""
EQUATIONS = 8192
"""Equations of one regression at most: rows or columns, whichever are fewer. Their matrix is square."""
ENTRIES = 2**27
"""Numbers at most in the rows of one regression."""
RIDGE_READER = 1e-3
"""For layers that lost inputs, times the mean diagonal of the Gram matrix;"""
RIDGE_OTHER = 1e-2
"""and for those that read what others have lost."""
_PLACES = {"weight": 3, "bias": 4, "training": 5, "momentum": 6, "eps": 7}
"""Which operand of a batch normalisation is which."""
_FLAT = 1e-4
"""Channels that a normalisation scales by less than this share of the largest scale stay as they are."""


@dataclass(frozen=True)
class Refit:
    """One layer: how far it was from the dense one, as a share of the spread there, before and after."""

    layer: str
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Reconstruction:
    """What was solved anew."""

    samples: int
    layers: tuple[Refit, ...]
    skipped: tuple[str, ...]
    """Layers that lost inputs and stay as they were cut, each with the reason."""


def reconstruct(
    dense: nn.Module,
    pruned: nn.Module,
    structure: Structure,
    kept: Kept,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nn.Module, Reconstruction]:
    """Return a copy of `pruned` with the layers behind the cut re-solved on a sample, and how well that went.

    Args:
        dense: The model that was cut.
        pruned: What `apply_plan` made of it.
        structure: The structure of the dense model.
        kept: What was kept.
        args: Positional inputs: the whole sample as one batch.
        kwargs: Inputs by name.
        seed: Decides which places of large maps are looked at.
        tell: Hears (layers done, layers in all).

    Raises:
        NotPrunableError: The two models take different paths.
    """
    kwargs = dict(kwargs or {})
    solved = _faster(copy_module(pruned, lambda _, tensor: tensor.detach().clone()))
    beside = _faster(copy_module(dense, lambda _, tensor: tensor.detach()))
    install(beside, structure.rewritten)
    args, kwargs = tree_map_only(Tensor, _faster_tensor, (tuple(args), kwargs))
    few = tree_map_only(Tensor, lambda tensor: tensor[:2], (args, kwargs))
    with kept_rng(), eval_mode(solved), eval_mode(beside), torch.no_grad(), plain_kernels():
        chains = _behind_the_cut(find_chains(solved, *few), structure, kept)
        ends = {chain.end for chain, _ in chains}
        with Alongside(beside, args, kwargs, ends) as reference, following(solved) as modules:
            solving = _Solving(modules, solved, chains, structure, kept, reference, seed, tell)
            with solving:
                solved(*args, **kwargs)
    samples = next(len(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    result = Reconstruction(samples, tuple(solving.refits), tuple(solving.skipped))
    return _like(solved, pruned), result


def _behind_the_cut(chains: Sequence[Chain], structure: Structure, kept: Kept) -> list[tuple[Chain, bool]]:
    """Return the layers from the first that lost inputs on, each with whether it lost some itself.

    What the network puts out is left to the layers that lose inputs.
    """
    first = next((n for n, chain in enumerate(chains) if _lost_inputs(chain, structure, kept)), len(chains))
    return [
        (chain, lost)
        for chain in chains[first:]
        if (lost := _lost_inputs(chain, structure, kept)) or not chain.is_output
    ]


def _lost_inputs(chain: Chain, structure: Structure, kept: Kept) -> bool:
    described = structure.tensors.get(chain.weight)
    axis = described.axes[1] if described is not None else None
    return axis is not None and not axis.kept(kept).all()


@dataclass
class _Open:
    """A chain whose end the forward pass has not come to yet."""

    chain: Chain
    lost: bool
    layer: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None = None
    norm: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None = None

    def run(self) -> Tensor:
        """Run the layer and its normalisation again."""
        assert self.layer is not None
        func, args, kwargs = self.layer
        result: Tensor = func(*args, **kwargs)
        if self.norm is not None:
            func, args, kwargs = self.norm
            result = func(result, *args[1:], **kwargs)
        return result


class _Solving(CallWatch):
    """Runs the smaller model, and solves each layer when the end of its chain is reached."""

    def __init__(
        self,
        modules: Sequence[str],
        model: nn.Module,
        chains: Sequence[tuple[Chain, bool]],
        structure: Structure,
        kept: Kept,
        reference: Alongside,
        seed: int,
        tell: Callable[[int, int], None],
    ) -> None:
        super().__init__(modules)
        self.tensors = named_tensors(model)
        self.structure, self.kept, self.reference, self.tell = structure, kept, reference, tell
        self.generator = torch.Generator().manual_seed(seed)
        self.open = {chain.layer: _Open(chain, lost) for chain, lost in chains}
        self.by_norm = {each.chain.norm: each for each in self.open.values() if each.chain.norm}
        self.ending: dict[CallKey, list[_Open]] = {}
        for each in self.open.values():
            self.ending.setdefault(each.chain.end, []).append(each)
        self.done, self.total = 0, len(self.open)
        self.refits: list[Refit] = []
        self.skipped: list[str] = []

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call; at the end of a chain, with what was solved."""
        if key in self.open:
            self.open[key].layer = (func, args, kwargs)
        if key in self.by_norm:
            self.by_norm[key].norm = (func, (None, *args[1:]), kwargs)
        ending = self.ending.get(key)
        if ending is None:
            return func(*args, **kwargs)
        target = self.reference.take(key)
        operands = list(args)
        for each in ending:
            extra = operands[1 - each.chain.place] if each.chain.sum == key else None
            self._solve(each, target, extra)
            result = each.run()
            if each.chain.sum == key:
                operands[each.chain.place] = result
            each.layer = each.norm = None
        if ending[0].chain.sum != key:
            return result
        added = func(*operands, **kwargs)
        # What a call wrote in place is what later calls read, whether they take its result or not.
        return args[0].copy_(added) if key.function in IN_PLACE else added

    def _solve(self, each: _Open, target: Tensor, extra: Tensor | None) -> None:
        """Give a layer the weight that brings the end of its chain closest to the target."""
        assert each.layer is not None
        self.done += 1
        self.tell(self.done, self.total)
        chain, (_, args, kwargs) = each.chain, each.layer
        geometry = geometry_of(chain.layer.function, args, kwargs)
        if geometry is None:
            self._skip(each, "it pads in a way of its own")
            return
        weight, affine = self.tensors[chain.weight], _Affine.of(each, self.tensors)
        problem = self._problem(each, geometry, target, extra, args[0], affine.has_intercept)
        if min(problem.inputs.shape[1:]) > EQUATIONS:
            self._skip(each, f"{min(problem.inputs.shape[1:]):,} equations are too many")
            return
        start = affine.folded(weight, geometry)
        before = error_of(problem, start.weight, start.intercept)
        found = solve(problem, start, RIDGE_READER if each.lost else RIDGE_OTHER)
        if found is not None and found.error < before:
            affine.unfold(found, geometry, self.tensors)
            self.refits.append(Refit(_layer(chain), before, found.error))

    def _problem(
        self, each: _Open, geometry: Geometry, target: Tensor, extra: Tensor | None, data: Tensor, free: bool
    ) -> Problem:
        axis = self.structure.tensors[each.chain.weight].axes[0]
        stays = None
        if axis is not None:
            stays = torch.from_numpy(np.flatnonzero(axis.kept(self.kept))).to(target.device)
        shape = map_shape(target, geometry)
        columns = self.tensors[each.chain.weight][0].numel() * geometry.groups
        places = choose_places(len(target), shape, min(ROWS, ENTRIES // columns), self.generator)
        return Problem(
            inputs_at(data, geometry, shape, places),
            outputs_at(target, geometry, places, stays),
            None if extra is None else outputs_at(extra, geometry, places),
            each.chain.rectified,
            free,
        )

    def _skip(self, each: _Open, reason: str) -> None:
        if each.lost:
            self.skipped.append(f"{_layer(each.chain)}: {reason}")


def _layer(chain: Chain) -> str:
    return chain.weight.rpartition(".")[0] or chain.weight


@dataclass(frozen=True, eq=False)
class _Affine:
    """What the end of a chain makes of a layer's product, channel by channel: factor * product + shift."""

    chain: Chain
    factor: Tensor
    shift: Tensor
    is_flat: Tensor
    """Channels whose factor is next to nothing: what comes out hardly depends on the weight."""

    @property
    def has_intercept(self) -> bool:
        """Whether there is a bias or a running mean to hold an intercept."""
        return self.chain.bias is not None or self.chain.mean is not None

    @staticmethod
    def of(each: _Open, tensors: Mapping[str, Tensor]) -> _Affine:
        """Read the factors and shifts off the parameters."""
        weight = tensors[each.chain.weight]
        factor = torch.ones(len(weight), dtype=torch.float64, device=weight.device)
        shift = torch.zeros_like(factor)
        if each.norm is not None:
            _, args, kwargs = each.norm
            given = dict(enumerate(args)) | {_PLACES[name]: value for name, value in kwargs.items()}
            scale, offset, epsilon = (given.get(_PLACES[name]) for name in ("weight", "bias", "eps"))
            factor = (given[2].double() + (1e-5 if epsilon is None else epsilon)).rsqrt()
            factor = factor if scale is None else factor * scale.double()
            shift = -given[1].double() * factor
            shift = shift if offset is None else shift + offset.double()
        if each.chain.bias is not None:
            shift = shift + factor * tensors[each.chain.bias].double()
        is_flat = factor.abs() <= _FLAT * factor.abs().max()
        return _Affine(each.chain, factor, shift, is_flat)

    def folded(self, weight: Tensor, geometry: Geometry) -> Fit:
        """Return the layer and what follows as one weight and intercept."""
        factor = self.factor.reshape(-1, *[1] * (weight.dim() - 1))
        shift = self.shift.unflatten(0, (geometry.groups, -1))
        return Fit(as_columns(weight.double() * factor, geometry), shift, 0.0)

    def unfold(self, fit: Fit, geometry: Geometry, tensors: Mapping[str, Tensor]) -> None:
        """Write a weight and an intercept back to the layer, its bias or the running mean behind it."""
        weight = tensors[self.chain.weight]
        factor = torch.where(self.is_flat, 1.0, self.factor)
        found = as_weight(fit.weight, geometry, weight)
        _overwrite(weight, found / factor.reshape(-1, *[1] * (weight.dim() - 1)), self.is_flat)
        if not self.has_intercept:
            return
        moved = (fit.intercept.flatten() - self.shift) / factor
        if self.chain.bias is not None:
            bias = tensors[self.chain.bias]
            _overwrite(bias, bias.double() + moved, self.is_flat)
        elif self.chain.mean is not None:
            mean = tensors[self.chain.mean]
            _overwrite(mean, mean.double() - moved, self.is_flat)


def _overwrite(tensor: Tensor, found: Tensor, stays: Tensor) -> None:
    keep = stays.reshape(-1, *[1] * (tensor.dim() - 1))
    tensor.copy_(torch.where(keep, tensor.double(), found))


def _faster(model: nn.Module) -> nn.Module:
    """Return the model in the memory format in which CPUs run convolutions fastest."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _faster_tensor(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _like(solved: nn.Module, pruned: nn.Module) -> nn.Module:
    """Return a copy of `pruned` with the numbers of `solved`."""
    found = named_tensors(solved)
    return copy_module(pruned, lambda name, tensor: found[name].detach().to(tensor).contiguous().clone())
