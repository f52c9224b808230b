"""Second derivatives of the loss in single gates: the diagonal of the Hessian, never the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from prunecli.errors import ScoreError
from prunecli.importance.gradients import checked_loss
from prunecli.importance.micro_batches import MicroBatch

if TYPE_CHECKING:
    from prunecli.importance.look import Look

Curvature = Mapping[str, Float64[Tensor, " width"]]

OUTPUTS = 4096
"""So many outputs per sample at most for Gauss-Newton: it keeps their Hessian per sample."""
_HESSIANS = 4
"""So many copies of that Hessian there are at a time, in float64."""
_NEGLIGIBLE = 1e-12
"""Directions of the output in which the loss has less than this share of its curvature are left out."""

_LINEAR = frozenset(
    {
        "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        "relu", "relu_", "leaky_relu", "leaky_relu_", "relu6", "hardtanh", "hardtanh_", "threshold",
        "threshold_", "prelu", "batch_norm", "dropout", "dropout1d", "dropout2d", "dropout3d", "pad",
        "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "fn",
        "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
        "flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "expand",
        "chunk", "split", "narrow", "select", "__getitem__", "cat", "concat", "stack", "upsample",
        "interpolate", "pixel_shuffle", "channel_shuffle", "add", "__add__", "__radd__", "__iadd__", "add_",
        "sub", "__sub__", "__isub__", "sub_", "mean", "sum", "clone", "detach", "to", "float", "size", "dim",
        "__get__", "__len__", "type", "is_floating_point", "numel", "identity", "ndimension", "stride",
    }
)  # fmt: skip
"""Functions that are piecewise linear in all data together, with normalisations in eval mode."""


class Hessian(str, Enum):
    """How second derivatives are found."""

    AUTO = "auto"  # exact-gn where that is exact, else exact
    EXACT_GN = "exact-gn"  # Gauss-Newton: a backward pass per class
    EXACT = "exact"  # a second backward pass per unit
    HUTCHINSON = "hutchinson"  # random probes


def gauss_newton(look: Look, *, only_if_exact: bool) -> Curvature | None:
    """Return the diagonal of the Gauss-Newton matrix: mean over samples of J^T H J, J = d output / d gate.

    H is the Hessian of the loss in the outputs, as sum of l u u^T; each u costs one backward pass for
    all gates of all samples. For cross-entropy on a network that is piecewise linear this is the
    diagonal of the Hessian (METHODS 2.5), except that a gate which several layers in a row share has
    terms of second order in itself, which it leaves out.

    Args:
        look: The micro-batch.
        only_if_exact: Return None where the network is not piecewise linear in a gate.

    Raises:
        ScoreError: The output is no tensor, or samples influence each other.
    """
    known = look.conditions.known
    if look.conditions.mixes_samples and not only_if_exact:
        raise ScoreError(
            f"{look.where}: Gauss-Newton takes each sample by itself, and normalisations use the statistics "
            "of the micro-batch here. Use `--method-arg hessian=exact`, or `--score-bn eval`."
        )
    if only_if_exact and known.get("piecewise linear") is False:
        return None
    totals = {
        name: torch.zeros_like(gate, dtype=torch.float64) for name, gate in look.open_gates(None).items()
    }
    for part, weight in _parts(look):
        gates = look.open_gates(part.samples)
        with look.gating(gates, part) as (watch, output):
            if only_if_exact and "piecewise linear" not in known:
                known["piecewise linear"] = (
                    not look.conditions.mixes_samples
                    and watch.functions <= _LINEAR
                    and _is_flat(output, part.samples)
                    and look.told_apart(output, gates, part.samples)
                )
                if not known["piecewise linear"]:
                    return None
            checked_loss(look.loss(output, part), look.where, "a gate")
            look.check_apart(output, gates, part.samples)
            flat = flattened(output, part.samples, look.where)
            values, vectors = curved_directions(output, part.samples, partial(look.loss, batch=part))
            wanted = range(values.shape[1])
            for done, index in enumerate(wanted):
                direction = vectors[:, :, index].to(flat.dtype)
                found = torch.autograd.grad(
                    flat, list(gates.values()), direction, retain_graph=True, allow_unused=True
                )
                for name, jacobian in zip(gates, found, strict=True):
                    if jacobian is not None:
                        totals[name] += weight * (values[:, index, None] * jacobian.double().square()).sum(0)
                look.conditions.tell("curvature", done + 1, len(wanted))
    return {name: total.detach() for name, total in totals.items()}


def exact(look: Look) -> Curvature:
    """Return the diagonal of the Hessian by one second backward pass per unit."""
    totals = {
        name: torch.zeros_like(gate, dtype=torch.float64) for name, gate in look.open_gates(None).items()
    }
    for part, weight in _parts(look, twice=True):
        gates = look.open_gates(None)
        with look.gating(gates, part) as (_, output):
            loss = checked_loss(look.loss(output, part), look.where, "a gate")
            found = second_derivatives(loss, list(gates.values()), look.conditions.tell)
            for name, second in zip(gates, found, strict=True):
                totals[name] += weight * second
    return {name: total.detach() for name, total in totals.items()}


def hutchinson(look: Look, draws: int) -> Curvature:
    """Return an unbiased estimate of the diagonal: the mean of v * (H v) over random signs v."""
    totals = {
        name: torch.zeros_like(gate, dtype=torch.float64) for name, gate in look.open_gates(None).items()
    }
    generator = torch.Generator().manual_seed(torch.initial_seed() + look.number)
    for part, weight in _parts(look, twice=True):
        gates = look.open_gates(None)
        with look.gating(gates, part) as (_, output):
            loss = checked_loss(look.loss(output, part), look.where, "a gate")
            found = probed(loss, list(gates.values()), draws, generator, look.conditions.tell)
            for name, estimate in zip(gates, found, strict=True):
                totals[name] += weight * estimate
    return {name: total.detach() for name, total in totals.items()}


def second_derivatives(
    loss: Tensor, leaves: Sequence[Tensor], tell: Callable[[str, int, int], None]
) -> list[Tensor]:
    """Return the second derivative of a loss in each entry of the leaves, by a backward pass per entry."""
    first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    totals = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    entries, done = sum(leaf.numel() for leaf in leaves), 0
    for leaf, gradient, total in zip(leaves, first, totals, strict=True):
        for entry in range(leaf.numel()):
            done += 1
            tell("curvature", done, entries)
            if gradient is None or not gradient.requires_grad:
                continue
            one = gradient.reshape(-1)[entry]
            (second,) = torch.autograd.grad(one, leaf, retain_graph=True, allow_unused=True)
            if second is not None:
                total.view(-1)[entry] = second.reshape(-1)[entry].double()
    return totals


def probed(
    loss: Tensor,
    leaves: Sequence[Tensor],
    draws: int,
    generator: torch.Generator,
    tell: Callable[[str, int, int], None],
) -> list[Tensor]:
    """Return an unbiased estimate of the second derivatives: the mean of v * (H v) over random signs v."""
    first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    totals = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    if not any(gradient.requires_grad for gradient in first):
        return totals  # the loss is linear in every leaf
    for draw in range(draws):
        signs = [_signs(leaf, generator) for leaf in leaves]
        along = torch.stack([(f * s).sum() for f, s in zip(first, signs, strict=True)]).sum()
        second = torch.autograd.grad(along, leaves, retain_graph=True, materialize_grads=True)
        for total, sign, found in zip(totals, signs, second, strict=True):
            total += (sign * found).double() / draws
        tell("curvature", draw + 1, draws)
    return totals


def _signs(gate: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, gate.shape, generator=generator) * 2 - 1
    return drawn.to(device=gate.device, dtype=gate.dtype)


def _parts(look: Look, *, twice: bool = False) -> Iterator[tuple[MicroBatch, float]]:
    """Yield parts of the micro-batch whose activations fit into the memory, with their share of it.

    Normalisations that use the batch's statistics need it whole.
    """
    samples = look.batch.samples
    if look.conditions.mixes_samples:
        yield look.batch, 1.0
        return
    known = look.conditions.known
    if "bytes per sample" not in known:
        known["bytes per sample"] = _bytes_per_sample(look)
    step = max(int(look.conditions.memory // max(known["bytes per sample"] * (3 if twice else 1), 1)), 1)
    for start in range(0, samples, step):
        part = look.batch.cut(start, min(start + step, samples))
        yield part, part.samples / samples


def _bytes_per_sample(look: Look) -> int:
    """Return how much is kept of one sample: by autograd, and for the Hessian of the loss in its outputs."""
    one = look.batch.cut(0, 1)

    def run() -> Any:
        with look.gating(look.open_gates(1), one) as (_, output):
            return output

    return bytes_kept(look.conditions.model, run)


def bytes_kept(model: nn.Module, run: Callable[[], Any]) -> int:
    """Return how much a pass over one sample keeps; `run` returns the output."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()
    hessian = _HESSIANS * 8 * output.numel() ** 2 if _is_flat(output, 1) else 0
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)  # all samples share it
    return sum(kept.values()) + hessian


def _is_flat(output: Any, samples: int) -> bool:
    """Return whether an output is one tensor with few enough numbers per sample."""
    return isinstance(output, Tensor) and output.shape[:1] == (samples,) and output[0].numel() <= OUTPUTS


def flattened(output: Any, samples: int, where: str) -> Tensor:
    """Return the output as [samples, outputs].

    Raises:
        ScoreError: It is no such thing, or has too many.
    """
    if _is_flat(output, samples):
        flat: Tensor = output.reshape(samples, -1)
        return flat
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ScoreError(
        f"{where}: Gauss-Newton takes a tensor of at most {OUTPUTS} outputs per sample, found {found}. "
        "Use `--method-arg hessian=hutchinson` or `hessian=exact`."
    )


def curved_directions(
    output: Tensor, samples: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Float64[Tensor, "samples kept"], Float64[Tensor, "samples outputs kept"]]:
    """Return by how much the mean loss bends in each sample's outputs, and in which directions.

    What has next to no curvature in any sample is left out.
    """
    values, vectors = torch.linalg.eigh(_output_hessian(output, samples, loss_of))
    wanted = _directions(values)
    return values[:, wanted], vectors[:, :, wanted]


def _output_hessian(
    output: Tensor, samples: int, loss_of: Callable[[Tensor], Tensor]
) -> Float64[Tensor, "samples outputs outputs"]:
    """Return the Hessian of the mean loss in each sample's outputs: in float64, if the loss takes that."""
    try:
        leaf = output.detach().double().requires_grad_(True)
        loss = loss_of(leaf)
    except RuntimeError:  # it has constants in another precision, such as weights of classes
        leaf = output.detach().clone().requires_grad_(True)
        loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    gradient = gradient.reshape(samples, -1)
    rows = []
    for index in range(gradient.shape[1]):
        row = None
        if gradient.requires_grad:
            (row,) = torch.autograd.grad(gradient[:, index].sum(), leaf, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(gradient) if row is None else row.reshape(samples, -1))
    hessian = torch.stack(rows, dim=1)
    return ((hessian + hessian.mT) / 2).detach().double()


def _directions(values: Float64[Tensor, "samples outputs"]) -> list[int]:
    """Return which eigenvectors (the same rank in every sample) carry curvature."""
    shares = values.abs().sum(0)
    return [i for i, share in enumerate(shares.tolist()) if share > _NEGLIGIBLE * float(shares.sum())]
