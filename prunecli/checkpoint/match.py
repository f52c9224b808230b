"""Checkpoint + model -> a model that holds the tensors, or an error that says what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunecli.checkpoint.hugging_face import as_named_by_transformers
from prunecli.checkpoint.names import listed, printable
from prunecli.checkpoint.read import Checkpoint, read_checkpoint
from prunecli.checkpoint.spellings import spellings
from prunecli.errors import CheckpointError
from prunecli.growth import Ceiling
from prunecli.model import build_model
from prunecli.on_demand import OnDemand
from prunecli.spec import ModelSpec
from prunecli.spec.model_spec import FactoryKind, Reference

_AT_ONCE = 1 << 20
"""How many numbers are looked at together."""
_COUNTER = "num_batches_tracked"
"""The counter of a batch norm, which only matters with `momentum=None`."""


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape in the checkpoint is not the one that the model has."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True)
class MatchReport:
    """How the names in a checkpoint met those of a model."""

    matched: int
    missing: tuple[str, ...] = ()
    """In the model only."""
    unexpected: tuple[str, ...] = ()
    """In the checkpoint only."""
    mismatched: tuple[Mismatch, ...] = ()
    prefix: str = ""
    """What was cut from the front of all names."""
    cast: tuple[str, ...] = ()
    """Conversions of dtype, e.g. `bfloat16 -> float32`."""
    came_in: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Tensors that were converted -> the dtype that they have in the checkpoint."""
    absent_counters: int = 0
    """How many `num_batches_tracked` the checkpoint lacks; they only matter to momentum=None."""

    @property
    def fits(self) -> bool:
        """Say whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def describe(self) -> str:
        """Return one line: how many tensors matched, and what was done to make them."""
        parts = [f"{self.matched} tensors match the model"]
        if self.prefix:
            parts.append(f"without the prefix `{printable(self.prefix)}`")
        parts += [f"converted {cast}" for cast in self.cast]
        if self.absent_counters:
            parts.append(f"{self.absent_counters} batch counters are absent and start from 0")
        return ", ".join(parts)


def load_model(spec: ModelSpec, checkpoint: Checkpoint | str | Path, *, trust: bool = False) -> nn.Module:
    """Build the model of the spec and load the checkpoint into it: on the CPU, in eval mode.

    Args:
        spec: how to build the model.
        checkpoint: its parameters, or the path of a file that holds them.
        trust: run the code that a spec from inside a checkpoint names.

    Raises:
        SpecError: the model cannot be built.
        CheckpointError: the file cannot be read, or the two do not fit together.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    model = build_model(spec, trust=trust, ceiling=Ceiling.over(checkpoint.tensors))
    load_into(model, checkpoint, spec)
    return model


def load_into(model: nn.Module, checkpoint: Checkpoint, spec: ModelSpec | None = None) -> MatchReport:
    """Copy the checkpoint's tensors into the model; they take the model's dtype.

    A model built `bare` takes the tensors themselves as its parameters: they may be mapped from the file.

    Args:
        model: receives them. After an error its values are undefined.
        checkpoint: holds them.
        spec: makes the advice in an error more precise.

    Raises:
        CheckpointError: a name or shape does not fit, or a parameter is not finite.
    """
    own = _state(model)
    named = as_named_by_transformers(checkpoint.tensors, model.state_dict(), spec)
    tensors, prefix = _best_names(model, named)
    mismatched = tuple(
        Mismatch(name, tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in tensors.items()
        if name in own and not is_lazy(own[name]) and tensor.shape != own[name].shape
    )
    fitting = {
        name: tensor for name, tensor in tensors.items() if name not in {item.name for item in mismatched}
    }
    _check_values(checkpoint, own, fitting)
    absent, unexpected = _loaded(model, fitting, checkpoint.path)
    missing = _really_missing(own, absent, fitting, {item.name for item in mismatched})
    report = MatchReport(
        matched=len(fitting) - len(unexpected),
        missing=tuple(name for name in missing if not name.endswith(_COUNTER)),
        unexpected=tuple(unexpected),
        mismatched=mismatched,
        prefix=prefix,
        cast=_casts(own, fitting),
        came_in={
            name: tensor.dtype
            for name, tensor in fitting.items()
            if name in own and own[name].dtype != tensor.dtype
        },
        absent_counters=sum(name.endswith(_COUNTER) and name not in fitting for name in own),
    )
    if not report.fits:
        raise CheckpointError(_describe(checkpoint, report, own, spec))
    return report


def _loaded(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> tuple[list[str], list[str]]:
    """Load tensors, and return the names that only the model has, and those that only they have."""
    own = _state(model)
    is_bare = any(tensor.is_meta for tensor in own.values())
    tied = _tied(model) if is_bare else []
    try:
        if is_bare:
            tensors = {
                name: _instead_of(own[name], tensor) if name in own else tensor
                for name, tensor in tensors.items()
            }
        result = model.load_state_dict(tensors, strict=False, assign=is_bare)
    except Exception as error:  # from hooks of the model
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"`{path}` cannot be loaded: {printable(lines[-1].strip())}") from error
    if is_bare:
        _tie(model, tied, tensors)
    return result.missing_keys, result.unexpected_keys


def _instead_of(own: Tensor, tensor: Tensor) -> Tensor:
    """Return what takes the place of a tensor of a bare model; in its dtype, where that takes no memory.

    Buffers take the values, as several names may share one.
    """
    if not isinstance(own, nn.Parameter):
        with torch.no_grad():
            return own.copy_(tensor)
    return tensor.to(own.dtype) if isinstance(tensor, OnDemand) else tensor


def _tied(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def _tie(model: nn.Module, tied: list[list[str]], found: Mapping[str, Tensor]) -> None:
    """Make names that shared a parameter share one again, where each was given its own, or none."""
    for names in tied:
        given = model.get_parameter(next((name for name in names if name in found), names[0]))
        for name in names:
            path, _, key = name.rpartition(".")
            model.get_submodule(path)._parameters[key] = given


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by name, themselves and not copies; extra states are no tensors."""
    return {
        name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
    }


def _best_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors under the names that fit the model best, and the prefix that was cut."""
    own = _state(model)

    def score(named: Mapping[str, Tensor]) -> tuple[int, int]:
        known = [name for name in named if name in own]
        return len(known), sum(
            not is_lazy(own[name]) and own[name].shape == named[name].shape for name in known
        )

    best, best_prefix = dict(tensors), ""
    for prefix, named in spellings(tensors):
        if score(named) > score(best):
            best, best_prefix = named, prefix
    return best, best_prefix


def _check_values(checkpoint: Checkpoint, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are not finite, integers in place of floats, and tied tensors that differ."""
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        target = own.get(name)
        if target is None:
            continue
        if isinstance(target, nn.Parameter) and target.is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"`{checkpoint.path}`: `{printable(name)}` is {_dtype(tensor)}, but the model's is "
                f"{_dtype(target)}. Quantised checkpoints cannot be pruned."
            )
        check_finite(checkpoint.path, name, tensor, isinstance(target, nn.Parameter))
        _check_range(checkpoint.path, name, tensor, target)
        first = seen.setdefault(id(target), name)
        if first != name and not torch.equal(tensors[first], tensor):
            raise CheckpointError(
                f"`{checkpoint.path}`: `{printable(first)}` and `{printable(name)}` differ, but the model "
                "ties them."
            )


def check_finite(path: Path, name: str, tensor: Tensor, is_parameter: bool) -> None:
    """Refuse a parameter, or a statistic of a normalisation, that is not finite.

    Raises:
        CheckpointError: naming it.
    """
    is_statistic = name.endswith(("running_mean", "running_var"))
    if (is_parameter or is_statistic) and not all(bool(part.isfinite().all()) for part in _parts(tensor)):
        count = int((~torch.isfinite(tensor)).sum())
        values = f"{count:,} values that are" if count > 1 else "a value that is"
        raise CheckpointError(
            f"`{path}`: `{printable(name)}` holds {values} not finite (NaN or infinity). "
            "Pick a checkpoint from before training diverged."
        )


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the tensor in blocks of its first dimension: what is worked out of one is as large again."""
    whole = tensor.read() if isinstance(tensor, OnDemand) else tensor.detach()
    return whole.split(max(_AT_ONCE * len(whole) // max(whole.numel(), 1), 1)) if whole.dim() else [whole]


def _check_range(path: Path, name: str, tensor: Tensor, target: Tensor) -> None:
    """Refuse numbers that are finite in the checkpoint, and infinite in the precision of the model."""
    is_wider = tensor.dtype.itemsize > target.dtype.itemsize
    if not (is_wider and tensor.is_floating_point() and target.is_floating_point() and tensor.numel()):
        return
    low, high = tensor.aminmax()
    largest, most = max(-float(low), float(high)), torch.finfo(target.dtype).max
    if most < largest < float("inf"):
        raise CheckpointError(
            f"`{path}`: `{printable(name)}` holds numbers up to {largest:.3g}, and the model is "
            f"{_dtype(target)}, which ends at {most:.3g}. Let the spec build it in {_dtype(tensor)}."
        )


def _really_missing(
    own: Mapping[str, Tensor], missing: list[str], found: Mapping[str, Tensor], mismatched: set[str]
) -> list[str]:
    """Return the missing names, less those that are tied to a tensor that was found, and extra states."""
    filled = {id(own[name]) for name in found if name in own}
    return [
        name for name in missing if name in own and id(own[name]) not in filled and name not in mismatched
    ]


def _casts(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    pairs = Counter(
        f"{_dtype(tensor)} -> {_dtype(own[name])}"
        for name, tensor in tensors.items()
        if name in own and tensor.dtype != own[name].dtype
    )
    return tuple(pairs)


def _describe(
    checkpoint: Checkpoint, report: MatchReport, own: Mapping[str, Tensor], spec: ModelSpec | None
) -> str:
    """Say in two lines what does not fit, and what to do."""
    parts = []
    if report.mismatched:
        shown = "; ".join(
            f"`{printable(item.name)}` is {list(item.found)}, the spec builds {list(item.expected)}"
            for item in report.mismatched[:3]
        )
        more = f" and {len(report.mismatched) - 3} more" if len(report.mismatched) > 3 else ""
        parts.append(f"{len(report.mismatched)} shapes differ: {shown}{more}")
    if report.missing:
        parts.append(f"{len(report.missing)} missing: {listed(report.missing)}")
    if report.unexpected:
        parts.append(f"{len(report.unexpected)} unexpected: {listed(report.unexpected)}")
    return (
        f"`{checkpoint.path}` does not fit the spec ({report.matched} of {len(own)} tensors match). "
        f"{'. '.join(parts)}.\n{_advice(report, checkpoint, own, spec)}"
    )


def _count_of_classes(spec: ModelSpec | None, expected: Sequence[int]) -> str:
    """Return the argument of the factory that probably says how many classes there are."""
    if spec is None:
        return "num_classes"
    if Reference.parse(spec.factory).kind is FactoryKind.TRANSFORMERS:
        return "num_labels"
    alike = (name for name, value in spec.args.items() if type(value) is int and [value] == list(expected))
    return next(alike, "num_classes")


def _advice(
    report: MatchReport, checkpoint: Checkpoint, own: Mapping[str, Tensor], spec: ModelSpec | None
) -> str:
    classes = {(item.found[:1], item.expected[:1]) for item in report.mismatched}
    tails = all(item.found[1:] == item.expected[1:] for item in report.mismatched)
    if len(classes) == 1 and tails and not report.missing and not report.unexpected:
        (found, expected) = classes.pop()
        if any(found):  # neither a lone number nor nothing at all
            count = _count_of_classes(spec, expected)
            return f"If these are the classes, pass `--spec-arg {count}={found[0]}`."
    only_missing = report.missing and not report.unexpected and not report.mismatched
    if only_missing and all(name.lower().startswith("aux") for name in report.missing):
        return "If it was saved without its auxiliary heads, pass `--spec-arg aux_logits=false`."
    prefix = _prefix_of_all(checkpoint.tensors, own)
    if prefix:
        key = printable(f"{checkpoint.wrapper}.{prefix}" if checkpoint.wrapper else prefix)
        return f"The whole model is there under `{printable(prefix)}.`: pass `--key {key}`."
    return (
        "Check the factory and its arguments in the spec, or pass the checkpoint this spec was trained with."
    )


def _prefix_of_all(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Return under which prefix the checkpoint has all tensors of the model, if there is one."""
    first = next(iter(own), "")
    for name in tensors:
        prefix = name.removesuffix(f".{first}")
        if prefix != name and all(f"{prefix}.{other}" in tensors for other in own):
            return prefix
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
