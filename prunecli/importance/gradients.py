"""Model + micro-batch -> gradients of its mean loss, without touching `.grad`; and what they miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.errors import PruneError, ScoreError
from prunecli.graph.copying import parameters_by_all_names
from prunecli.graph.not_finite import where_not_finite
from prunecli.graph.structure import Structure
from prunecli.importance.micro_batches import MicroBatch
from prunecli.memory import is_for_want_of_memory

LossFn = Callable[[Any, Any], Tensor]
"""(output, targets) -> the mean loss of the batch, a scalar."""
Twins = Mapping[str, tuple[Tensor, ...]]
"""Canonical name -> the parameter objects under that name and its aliases, each once."""


class NotFiniteError(ScoreError):
    """The loss is not finite; which module that came from is still to be found out."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found} {advice}")
        self.found, self.advice = found, advice


def find_parameters(model: nn.Module, structure: Structure, names: Set[str]) -> dict[str, tuple[Tensor, ...]]:
    """Return the parameters called `names`. Tied ones are one object, or several over one storage.

    Raises:
        ScoreError: The structure was found on another network.
    """
    objects = parameters_by_all_names(model)
    tied: dict[str, list[str]] = {name: [name] for name in structure.tensors if name in names}
    for alias, name in structure.aliases.items():
        if name in tied:
            tied[name].append(alias)
    found: dict[str, tuple[Tensor, ...]] = {
        name: tuple({id(objects[same]): objects[same] for same in names if same in objects}.values())
        for name, names in tied.items()
    }
    for name in sorted(names):
        expected = structure.tensors[name].shape
        shapes = {tuple(tensor.shape) for tensor in found[name]}
        if shapes != {expected}:
            in_model = " and ".join(str(list(shape)) for shape in shapes) or "missing"
            raise ScoreError(
                f"`{name}` is {list(expected)} in the structure and {in_model} in the model. "
                "Pass the structure that find_groups made of this very model."
            )
    return found


def loss_gradients(
    model: nn.Module, batch: MicroBatch, loss_of: Callable[[Any], Tensor], followed: Twins, where: str
) -> dict[str, Tensor | None]:
    """Run forward and backward once; None for a parameter that the gradient does not reach.

    Args:
        model: The network.
        batch: The samples.
        loss_of: Makes the mean loss of an output.
        followed: The parameters that gradients are taken of.
        where: Which micro-batch this is, for messages.

    Raises:
        ScoreError: The model or the loss fails, or the loss is not one finite number.
    """
    flat = [tensor for twins in followed.values() for tensor in twins]
    with blaming(model, batch), explained(where):
        loss = checked_loss(loss_of(call_model(model, batch)), where, "any parameter that is to be scored")
        found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    gradients: dict[str, Tensor | None] = {}
    for name, twins in followed.items():
        parts = [part for part in (next(found) for _ in twins) if part is not None]
        gradients[name] = sum(parts[1:], parts[0]) if parts else None
    return gradients


def filled(found: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zero, which takes no memory, where there is no gradient."""
    return {
        name: parameters[name].new_zeros(()).expand_as(parameters[name]) if gradient is None else gradient
        for name, gradient in found.items()
    }


def read_by_forward(model: nn.Module, batch: MicroBatch, tensors: Twins) -> set[str]:
    """Return which of the parameters the forward pass reads at all, in whatever form."""
    storages = {twin.untyped_storage().data_ptr(): name for name, twins in tensors.items() for twin in twins}
    read = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                    read.add(storages.get(leaf.untyped_storage().data_ptr()))
            return func(*args, **kwargs or {})

    with Watch():  # type: ignore[no-untyped-call]
        call_model(model, batch)
    return {name for name in read if name is not None}


def call_model(model: nn.Module, batch: MicroBatch) -> Any:
    """Run forward on a micro-batch."""
    return model(**batch.inputs) if isinstance(batch.inputs, Mapping) else model(*batch.inputs)


def checked_loss(loss: Any, where: str, depends_on: str | None = None) -> Tensor:
    """Return the loss if it is one finite number, and has a gradient in what it should depend on.

    Raises:
        ScoreError: It is not.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ScoreError(f"{where}: the loss is one number, the mean over the batch; found {found}.")
    if not loss.isfinite().item():
        raise NotFiniteError(
            f"{where}: the loss is {loss.item()}.", "Check the normalisation of the data and the checkpoint."
        )
    if depends_on is not None and not loss.requires_grad:
        raise ScoreError(
            f"{where}: the loss does not depend on {depends_on}. If forward runs under "
            "torch.no_grad, use a method without gradients (`prunecli methods`)."
        )
    return loss


@contextmanager
def blaming(model: nn.Module, batch: MicroBatch) -> Iterator[None]:
    """Say which module of the model it came from when the loss is not finite."""
    try:
        yield
    except NotFiniteError as error:
        if isinstance(batch.inputs, Mapping):
            blame = where_not_finite(model, (), batch.inputs)
        else:
            blame = where_not_finite(model, batch.inputs)
        raise ScoreError(f"{error.found}{blame} {error.advice}") from None


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Say which micro-batch the user's own code failed on."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        if is_for_want_of_memory(error):
            raise ScoreError(f"{where} does not fit into memory. Use a smaller batch size.") from error
        raise ScoreError(f"{where}: the model or the loss failed: {type(error).__name__}: {error}") from error
