"""Numbers drawn for the units of a group, or for weights, fixed by the seed and the name of either."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float64
from torch import Tensor

from prunecli.graph.structure import Group


def draws_for(group: Group, seed: int) -> Float64[Tensor, " width"]:
    """Draw from U(0, 1), by a generator of the group's own: neither order nor other groups matter."""
    return drawn(group.name, (group.width,), seed)


def drawn(name: str, shape: tuple[int, ...], seed: int) -> Float64[Tensor, "*shape"]:
    """Draw from U(0, 1), by a generator of the name's own."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(shape, generator=generator, dtype=torch.float64)
