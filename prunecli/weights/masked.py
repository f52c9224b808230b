"""Model + masks -> the same model with zeros where weights are masked. The model passed in is untouched."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor, nn

from prunecli.errors import ProofError
from prunecli.graph.copying import copy_module, named_tensors, same_bits
from prunecli.weights.network import Masks


def with_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy in which every masked weight is zero; all else is as it was, bit for bit."""
    return copy_module(model, lambda name, tensor: _masked(tensor, masks.get(name)))


def kept_counts(masks: Masks) -> dict[str, tuple[int, int]]:
    """Return how many weights of each tensor stay, and how many there are.

    >>> import torch
    >>> kept_counts({"fc.weight": torch.tensor([[True, False, True]])})
    {'fc.weight': (2, 3)}
    """
    return {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}


def digest_of_masks(masks: Masks) -> str | None:
    """Return a text that tells masks from others; None without any."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(f"{name} {list(masks[name].shape)} ".encode())
        digest.update(np.packbits(masks[name].numpy()).tobytes())
    return digest.hexdigest() if masks else None


def check_masked(model: nn.Module, masked: nn.Module, masks: Masks) -> None:
    """Make sure that `masked` is `model` with zeros where `masks` say so, and nothing else.

    Raises:
        ProofError: Naming the first tensor that is not.
    """
    found = named_tensors(masked)
    for name, tensor in named_tensors(model).items():
        other, expected = found.get(name), _masked(tensor, masks.get(name))
        if other is None or other.shape != expected.shape or not same_bits(other.detach(), expected):
            raise ProofError(
                f"`{name}` of the masked model is not that of the dense one with zeros where it is masked. "
                "Nothing was written. Please report this."
            )


def _masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    tensor = tensor.detach()
    if mask is None:
        return tensor.clone()
    return tensor.masked_fill(~mask.to(tensor.device), 0)
