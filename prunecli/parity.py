"""Proof of surgery: the smaller model computes what the masked dense model computes.

Two checks, before anything is written. *Structure*: every parameter and statistic is replaced by
random numbers (dead units and constant scales hide mistakes) and both models run in float64.
*Numbers*: the real weights, in the working precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunecli.errors import ProofError
from prunecli.graph.borrowing import WithoutNoise, eval_mode, kept_rng, set_mode
from prunecli.graph.copying import copy_module, named_tensors, same_bits, walk
from prunecli.graph.cutting import cut, slice_tensor
from prunecli.graph.masked import run_masked
from prunecli.graph.not_finite import where_not_finite
from prunecli.graph.other_weights import Draw, InPrecision, Randomised, Shaken, cast
from prunecli.graph.outputs import tensors_in
from prunecli.graph.structure import Kept, Structure
from prunecli.graph.trace import plain_kernels, prepare
from prunecli.graph.tracer import OperationError
from prunecli.on_demand import OnDemand
from prunecli.plan import Plan

STRUCTURE_LIMIT: Final = 1e-9
NUMBERS_LIMIT: Final = 1e-4
SPREAD_FLOOR: Final = 1e-4
"""A spread below this share of the largest output says more about rounding than about the cut."""
_ROUNDING: Final = 1e-12
"""Samples whose outputs differ by no more than this share of the largest are all the same to the network."""
FLOAT64_PARAMETERS: Final = 1_000_000_000
"""Above this many parameters the structure check runs in float32."""
HELD_BYTES: Final = 64 << 20
"""Of models whose parameters take more, other weights are made tensor by tensor, anew at each use."""
_TROUBLE: Final = (RuntimeError, ValueError, IndexError, TypeError, OperationError)
"""What the model's own code raises where it does not run."""
_T = TypeVar("_T")
_NORMS: Final = (nn.modules.batchnorm._NormBase,)
_STILL: Final = (*_NORMS, nn.modules.dropout._DropoutNd, nn.AlphaDropout)


@dataclass(frozen=True)
class Parity:
    """Largest difference over largest output, for each check, and what was allowed."""

    structure_error: float
    structure_limit: float
    structure_dtype: str
    numbers_error: float
    numbers_limit: float
    numbers_dtype: str
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether both checks passed."""
        return self.structure_error <= self.structure_limit and self.numbers_error <= self.numbers_limit


def verify(
    model: nn.Module,
    pruned: nn.Module,
    structure: Structure,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Parity:
    """Prove that `pruned` is `model` without the units that `plan` removes.

    Args:
        model: the dense model; it is not touched.
        pruned: what `apply_plan` made of it; it is not touched.
        structure: the groups of the dense model.
        plan: which units stay.
        args: positional inputs, a small batch (two samples), where the model is.
        kwargs: keyword inputs.
        seed: of the random numbers.

    Raises:
        ProofError: one of the checks failed; nothing that was made should be used.
    """
    kept, kwargs = plan.kept(), dict(kwargs or {})
    with kept_rng(), eval_mode(model), eval_mode(pruned):
        _check_tensors(model, pruned, structure, kept)
        check = partial(_both_checks, model, pruned, structure, kept, args, kwargs, seed)
        try:
            checked, (numbers_error, numbers_dtype) = _sparing_memory(check, is_large(model))
        except _TROUBLE as error:
            raise ProofError(
                f"The smaller model does not run: {(str(error) or type(error).__name__).splitlines()[0]}. "
                "Nothing was written. Leave layers out with --ignore, and please report this."
            ) from error
    parity = Parity(
        checked.error, checked.limit, _name(checked.dtype),
        numbers_error, NUMBERS_LIMIT, _name(numbers_dtype), checked.notes,
    )  # fmt: skip
    if not parity.holds:
        _refuse_not_finite(model, args, kwargs)
        raise ProofError(
            "The smaller model disagrees with the masked dense model: relative error "
            f"{checked.error:.1e} with {checked.weights} (allowed {checked.limit:.0e}), "
            f"{numbers_error:.1e} with the real ones (allowed {NUMBERS_LIMIT:.0e}). "
            "Nothing was written. Leave layers out with --ignore, and please report this."
        )
    return parity


def _both_checks(
    model: nn.Module, pruned: nn.Module, structure: Structure, kept: Kept, args: Any, kwargs: Any, seed: int,
    on_demand: bool,
) -> tuple[_StructureCheck, tuple[float, torch.dtype]]:  # fmt: skip
    checked = _check_structure(model, structure, kept, args, kwargs, seed, on_demand)
    return checked, _check_numbers(model, pruned, structure, kept, args, kwargs, on_demand)


def _sparing_memory(check: Callable[[bool], _T], on_demand: bool) -> _T:
    """Check with weights that are made at each use, if asked to; with all of them held where that fails.

    Code that writes to its parameters, or looks at their memory, needs them there.
    """
    if on_demand:
        with suppress(*_TROUBLE):
            return check(True)
    return check(False)


def _refuse_not_finite(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Refuse a dense model that puts out NaN or infinity itself: then there is nothing to compare."""
    with torch.no_grad(), kept_rng(), eval_mode(model):
        blame = where_not_finite(model, args, kwargs)
    if blame:
        raise ProofError(
            f"Nothing can be proven: the dense model is not finite on samples that are made up.{blame} "
            "Nothing was written. Mend the model; or, if real samples are different, use `--no-verify`."
        )


def _check_tensors(model: nn.Module, pruned: nn.Module, structure: Structure, kept: Kept) -> None:
    """Compare every tensor of the smaller model with the slice that the plan calls for, bit for bit."""
    smaller = named_tensors(pruned)
    for name, tensor in named_tensors(model).items():
        in_blocks = InPrecision(tensor.dtype, on_demand=True)(name, tensor)
        expected, found = slice_tensor(in_blocks, name, structure, kept), smaller.get(name)
        if found is None or not _is_same(found, expected):
            raise ProofError(
                f"`{name}` of the smaller model is not the part of the dense one that the plan keeps."
            )


def _is_same(found: Tensor, expected: Tensor) -> bool:
    """Compare bit for bit; in parts what comes in such."""
    if found.shape != expected.shape:
        return False
    if not isinstance(expected, OnDemand) or expected.read_parts is None:
        return same_bits(found, expected)
    begin = 0
    for part in expected.read_parts():
        if not same_bits(found[begin : begin + len(part)], part):
            return False
        begin += len(part)
    return begin == len(found)


@dataclass(frozen=True)
class _StructureCheck:
    """How far both models are apart with other weights than the real ones."""

    error: float
    limit: float
    dtype: torch.dtype
    weights: str
    """What the weights were, in words that follow `with`."""
    notes: tuple[str, ...] = ()


def _check_structure(
    model: nn.Module, structure: Structure, kept: Kept, args: Any, kwargs: Any, seed: int, on_demand: bool
) -> _StructureCheck:
    """Compare both models with random weights, in float64 where that is possible."""
    size = sum(parameter.numel() for parameter in model.parameters())
    compare = partial(_compare_copies, model, structure, kept, args, kwargs)
    check = partial(_with_random_weights, compare, structure, seed, on_demand)
    if size > FLOAT64_PARAMETERS:
        found = check(torch.float32, NUMBERS_LIMIT)
        return replace(found, notes=(*found.notes, "too large for float64: structure checked in float32"))
    try:
        return check(torch.float64, STRUCTURE_LIMIT)
    except (RuntimeError, OperationError):  # code that computes in float32 whatever it is given
        found = check(torch.float32, NUMBERS_LIMIT)
        return replace(found, notes=(*found.notes, "does not run in float64: structure checked in float32"))


def is_large(model: nn.Module) -> bool:
    """Return whether a copy of the model is too much to hold."""
    return sum(each.numel() * each.element_size() for each in model.parameters()) > HELD_BYTES


def _with_random_weights(
    compare: Callable[..., tuple[float, bool]],
    structure: Structure,
    seed: int,
    on_demand: bool,
    dtype: torch.dtype,
    limit: float,
) -> _StructureCheck:
    """Compare with weights drawn anew; where these show nothing, with the real ones, all shaken.

    A deep network of random weights may be chaotic: rounding errors grow until they are as large as
    a mistake would be. Or it is dead: it puts out the same whatever it is given, and would with a mistake in
    it. Near its real weights it is neither; a mistake fails there too.
    """
    error, listens = compare(
        dtype, partial(Randomised, structure, seed, dtype, on_demand=on_demand), settle=True
    )
    if error <= limit and listens:
        return _StructureCheck(error, limit, dtype, "random weights")
    why = "amplify rounding" if listens else "make the outputs the same for every sample"
    note = f"random weights {why}: structure checked on the real ones, each changed at random"
    error, _ = compare(dtype, partial(Shaken, seed, dtype, on_demand=on_demand), settle=False)
    return _StructureCheck(error, limit, dtype, "the real weights changed at random", (note,))


def _compare_copies(
    model: nn.Module, structure: Structure, kept: Kept, args: Any, kwargs: Any, dtype: torch.dtype,
    weights: Callable[[], Draw], *, settle: bool,
) -> tuple[float, bool]:  # fmt: skip
    """Cut and mask copies with other weights; compare eval paths, and training paths if they differ.

    Returns the error, and whether the outputs depend on the inputs at all. The masked copy is gone when the
    smaller one is made, with the same weights drawn again: what is held at once decides how large a model
    can be proven.
    """

    def constant(tensor: Tensor) -> Tensor:
        return cast(tensor, dtype).clone()

    args, kwargs = tree_map_only(Tensor, lambda tensor: cast(tensor, dtype), (args, kwargs))
    dense = prepare(copy_module(model, weights(), constant), structure.rewritten)
    settled = _settle_statistics(dense, args, kwargs) if settle else {}
    expected = [run_masked(dense, structure, kept, args, kwargs)]
    if structure.follows_training:
        _train_without_noise(dense)
        expected.append(run_masked(dense, structure, kept, args, kwargs))
    del dense
    listens = _listens(expected[0])
    if settle and not listens:
        return float("nan"), False  # whatever the smaller model does, it shows nothing
    draw = weights()
    smaller = prepare(
        cut(model, structure, kept, lambda name, tensor: settled.get(name, draw(name, tensor)), constant), {}
    )
    found = [_run(smaller, args, kwargs)]
    if structure.follows_training:
        _train_without_noise(smaller)
        found.append(_run(smaller, args, kwargs))
    errors = [relative_error(*pair, to_spread=True) for pair in zip(found, expected, strict=True)]
    return max(errors, key=lambda error: (error != error, error)), listens


def _listens(outputs: Any) -> bool:
    """Return whether outputs differ between samples by more than rounding; of one sample nobody can tell."""
    told_apart = [
        tensor.detach().double() for tensor in tensors_in(outputs) if tensor.dim() and len(tensor) > 1
    ]
    spreads = [
        (each - each.mean(dim=0)).abs().max() / (each.abs().max() or 1) for each in told_apart if each.numel()
    ]
    return not spreads or max(float(spread) for spread in spreads) > _ROUNDING


def _check_numbers(
    model: nn.Module, pruned: nn.Module, structure: Structure, kept: Kept, args: Any, kwargs: Any,
    on_demand: bool,
) -> tuple[float, torch.dtype]:  # fmt: skip
    """Compare the smaller model itself with the masked dense model on the real weights."""
    dtype = _working_dtype(model)
    if dtype.itemsize < 4:  # too coarse to compare in; the weights are the same
        dtype = torch.float32
        pruned = copy_module(pruned, InPrecision(dtype), lambda t: cast(t, dtype).clone())
        args, kwargs = tree_map_only(Tensor, lambda tensor: cast(tensor, dtype), (args, kwargs))
    dense = copy_module(model, InPrecision(dtype, on_demand), lambda t: cast(t, dtype).clone())
    errors = []
    if structure.rewritten:
        before = _run(dense, args, kwargs)
        errors.append(relative_error(_run(prepare(dense, structure.rewritten), args, kwargs), before))
    dense = prepare(dense, {} if errors else structure.rewritten)
    got = _run(pruned, args, kwargs)
    errors.append(relative_error(got, run_masked(dense, structure, kept, args, kwargs)))
    return max(errors, key=lambda error: (error != error, error)), dtype


def relative_error(got: Any, expected: Any, *, to_spread: bool = False) -> float:
    """Return the largest difference over the largest expected value; NaN if anything is not finite.

    With `to_spread`, over how much the expected values differ between samples instead: a network that
    hardly listens to its input must not pass for that.

    Raises:
        ProofError: the outputs are not alike.
    """
    found, wanted = tensors_in(got), tensors_in(expected)
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in wanted]:
        raise ProofError(
            f"The smaller model puts out {[list(t.shape) for t in found]}, "
            f"the dense one {[list(t.shape) for t in wanted]}."
        )
    errors = [0.0]
    for left, right in zip(found, wanted, strict=True):
        left, right = left.detach().double(), right.detach().double()
        if not (left.isfinite().all() and right.isfinite().all()):
            return float("nan")
        if left.numel():
            scale = right.abs().max().item()
            spread = (right - right.mean(dim=0)).abs().max().item() if right.dim() else 0.0
            scale = max(spread, SPREAD_FLOOR * scale) if to_spread else scale
            errors.append((left - right).abs().max().item() / (scale or 1.0))
    return max(errors)


def _run(model: nn.Module, args: Any, kwargs: Any) -> Any:
    with torch.no_grad(), plain_kernels(), WithoutNoise():  # type: ignore[no-untyped-call, unused-ignore]
        return model(*args, **kwargs)


def _settle_statistics(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """Bring running statistics near what random weights produce, so that deep networks still listen.

    They are measured on a copy: a forward pass may leave more behind than statistics. Return them by name.
    """
    norms = _norms(model)
    if not norms:
        return {}
    measured = copy_module(model, _copy_of_buffer)
    for norm in _norms(measured):
        norm.train().momentum = 1.0
    with suppress(ValueError):  # one value per channel has no variance: the numbers drawn have to do
        _run(measured, args, kwargs)
    for norm, found in zip(norms, _norms(measured), strict=True):
        mean, variance = norm.running_mean, norm.running_var
        new_mean, new_variance = found.running_mean, found.running_var
        if mean is None or variance is None or new_mean is None or new_variance is None:
            continue
        if not torch.equal(new_mean, mean):
            variance.clamp_(0.5, 1.5).mul_(new_variance.clamp(min=1e-3))
            mean.clamp_(-1, 1).mul_(0.1 * variance.sqrt()).add_(new_mean)
    settled = {id(each) for norm in norms for each in (norm.running_mean, norm.running_var)}
    return {name: tensor.clone() for name, tensor in model.named_buffers() if id(tensor) in settled}


def _copy_of_buffer(_: str, tensor: Tensor) -> Tensor:
    """Lend a parameter, which a forward pass does not change, and copy a buffer."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    return [each for each in model.modules() if isinstance(each, _NORMS) and each.track_running_stats]


def _train_without_noise(model: nn.Module) -> None:
    set_mode(walk(model), training=True)
    for module in model.modules():
        if isinstance(module, _STILL):
            module.eval()


def _working_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
