"""Model outputs and targets -> one number to differentiate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from typing import Any

from torch import Tensor
from torch.nn import functional

from prunecli.errors import DataError, UsageError
from prunecli.spec import ModelSpec
from prunecli.spec.code import import_object

LossFunction = Callable[[Any, Any], Tensor]
"""(output, target) -> scalar, a mean over the samples."""

_IGNORED = -100
"""The label that `cross_entropy` skips."""


def loss_function(spec: ModelSpec, *, trust: bool = False, label_smoothing: float = 0.0) -> LossFunction:
    """Return the loss of the spec's task. The user's own gets the model's output as it is.

    It raises a DataError where samples have no labels.

    Args:
        spec: names the loss.
        trust: run the code that a spec from inside a checkpoint names.
        label_smoothing: the share of each target that is spread over all classes; for cross-entropy.

    Raises:
        SpecError: the loss names code that is missing, failed or is not trusted.
        UsageError: labels are to be smoothed for another loss.
    """
    if label_smoothing and spec.task.loss != "cross-entropy":
        raise UsageError(
            f'`--label-smoothing {label_smoothing}` is for `loss = "cross-entropy"`; the spec\'s is '
            f"`{spec.task.loss}`."
        )
    if label_smoothing:
        return _labelled(partial(_cross_entropy, smoothing=label_smoothing))
    if ":" in spec.task.loss:
        return _labelled(_checked(spec.task.loss, import_object(spec, spec.task.loss, trust=trust)))
    return _labelled(_LOSSES[spec.task.loss])


def _labelled(function: LossFunction) -> LossFunction:
    """Let a loss refuse samples without labels."""

    @wraps(function)
    def loss(output: Any, target: Any) -> Tensor:
        if target is None:
            raise DataError(
                "The source has no labels for the loss to compare outputs with. Add them (an `npz:` file has "
                "them in the array `labels`, or `PART_labels`); the method `fisher` and recovery need none."
            )
        return function(output, target)

    return loss


def main_output(output: Any) -> Tensor:
    """Return the tensor that answers the task: the logits without auxiliary heads.

    That is a tensor itself, else what is called `logits` or `out`, else the first tensor of a tuple,
    mapping or dataclass.

    Raises:
        DataError: there is no tensor.
    """
    if isinstance(output, Tensor):
        return output
    named: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        named = output
    elif hasattr(output, "_asdict"):
        named = output._asdict()
    elif is_dataclass(output):
        named = {item.name: getattr(output, item.name) for item in fields(output)}
    for name in ("logits", "out"):
        if isinstance(named.get(name), Tensor):
            return named[name]  # type: ignore[no-any-return]
    values = named.values() if named else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if value is not None:
            return main_output(value)
    raise DataError(f"The model puts out {type(output).__name__} without a tensor, which no loss can judge.")


def class_dimension(output: Tensor, target: Tensor) -> int:
    """Return which dimension of the output runs over classes: 1, or the last as in language models.

    Raises:
        DataError: the shapes do not belong together.
    """
    if output.ndim == 0:
        raise DataError("The model puts out a single number, but cross-entropy needs one per class.")
    if output.shape == target.shape or (
        output.ndim > 1 and (output.shape[0], *output.shape[2:]) == target.shape
    ):
        return min(1, output.ndim - 1)
    if output.shape[:-1] == target.shape:
        return output.ndim - 1
    raise DataError(
        f"Targets of shape {list(target.shape)} do not fit outputs of shape {list(output.shape)}."
    )


def check_labels(output: Tensor, target: Tensor, dimension: int) -> None:
    """Refuse labels that the model has no output for: on a GPU they would kill the process.

    Raises:
        DataError: naming the label and the number of outputs.
    """
    if target.is_floating_point():
        return
    classes = output.shape[dimension]
    counted = target[target != _IGNORED]
    if counted.numel() == 0:
        return
    lowest, highest = int(counted.min()), int(counted.max())
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"The label {wrong} has no output: the model tells {classes} classes apart, numbered from 0. "
            "Check the number of classes in the spec, and the data."
        )


def _cross_entropy(output: Any, target: Any, smoothing: float = 0.0) -> Tensor:
    logits, target = main_output(output), _tensor(target)
    if logits.shape == target.shape and target.ndim == 1:
        raise DataError(
            f"Outputs of shape {list(logits.shape)} have no dimension of classes. "
            'For two classes use `loss = "bce"`.'
        )
    dimension = class_dimension(logits, target)
    check_labels(logits, target, dimension)
    return functional.cross_entropy(logits.movedim(dimension, 1), target, label_smoothing=smoothing)


def _mse(output: Any, target: Any) -> Tensor:
    values, target = _same_shape(output, target)
    return functional.mse_loss(values, target)


def _bce(output: Any, target: Any) -> Tensor:
    values, target = _same_shape(output, target)
    if bool(((target < 0) | (target > 1)).any()):
        raise DataError('bce needs targets from 0 to 1. For class numbers use `loss = "cross-entropy"`.')
    return functional.binary_cross_entropy_with_logits(values, target)


_LOSSES: dict[str, LossFunction] = {"cross-entropy": _cross_entropy, "mse": _mse, "bce": _bce}


def _same_shape(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return both in the shape of the output; the targets may lack a last dimension of 1."""
    values, target = main_output(output), _tensor(target)
    if values.shape != target.shape:
        if values.shape != (*target.shape, 1) and target.shape != (*values.shape, 1):
            raise DataError(
                f"Targets of shape {list(target.shape)} do not fit outputs of shape {list(values.shape)}."
            )
        target = target.reshape(values.shape)
    return values, target.to(values.dtype)


def _tensor(target: Any) -> Tensor:
    if not isinstance(target, Tensor):
        raise DataError(
            f"Targets are {type(target).__name__}; only a loss of your own (`file.py:loss`) can judge these."
        )
    return target


def _checked(text: str, function: Callable[..., Any]) -> LossFunction:
    """Let the user's loss return nothing but one number."""

    def loss(output: Any, target: Any) -> Tensor:
        value = function(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise DataError(f"`{text}` returned {shape}, not a tensor with one number.")
        return value.reshape(())

    return loss
