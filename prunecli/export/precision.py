"""In which precision a file holds each tensor: that of the checkpoint, where no value is lost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunecli.graph.copying import aliases, named_tensors

Precisions = Mapping[str, torch.dtype]
"""Tensors by name -> the precision that they have in a file."""


def narrowed(model: nn.Module, came_in: Precisions) -> dict[str, torch.dtype]:
    """Return the tensors that the file may hold in fewer bits than the model does, and in which precision.

    Units that leave change no value of those that stay, so what came in half precision still fits there.
    What was worked out anew, by re-solving or training, mostly does not, and stays as it is.

    Args:
        model: what is written.
        came_in: the precision that tensors had in the checkpoint, by the model's names.

    >>> layer = nn.Linear(1, 1)
    >>> _ = layer.weight.data.fill_(0.1), layer.bias.data.fill_(0.5)
    >>> narrowed(layer, {"weight": torch.bfloat16, "bias": torch.bfloat16})
    {'bias': torch.bfloat16}
    """
    other_names: dict[str, list[str]] = {}
    for name, first in aliases(model).items():
        other_names.setdefault(first, []).append(name)
    found = {}
    for name, tensor in named_tensors(model).items():
        known = (came_in.get(each) for each in (name, *other_names.get(name, ())))
        dtype = next((each for each in known if each is not None), None)
        if dtype is not None and _fits(tensor, dtype):
            found[name] = dtype
    return found


def describe_precisions(model: nn.Module, narrow: Precisions) -> str | None:
    """Say in what precisions the file holds numbers, the most used first; None where it is the model's."""
    counts: dict[torch.dtype, int] = {}
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            dtype = narrow.get(name, tensor.dtype)
            counts[dtype] = counts.get(dtype, 0) + tensor.numel()
    ordered = sorted(counts, key=lambda dtype: -counts[dtype])
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in ordered) if narrow else None


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Say whether the precision has fewer bits, and every value of the tensor."""
    is_wide = tensor.dtype in (torch.float32, torch.float64)
    if not (is_wide and dtype.is_floating_point and dtype.itemsize < tensor.element_size()):
        return False
    return torch.equal(tensor.detach().to(dtype).to(tensor.dtype), tensor.detach())
