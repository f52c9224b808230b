"""Weights other than the real ones, drawn tensor by tensor: by them a mistake of structure shows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from prunecli.graph.structure import Role, Structure
from prunecli.on_demand import OnDemand

Draw: TypeAlias = Callable[[str, Tensor], Tensor]
"""What stands for a tensor of the model, by its name."""


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor without its history, in that precision if it has any."""
    tensor = tensor.detach()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class Shaken:
    """Changes each weight by up to a quarter of itself and a little more, so that none are alike or zero."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.seed, self.dtype = seed, dtype

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the weight, shaken."""
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        return _drawn(tensor, self.dtype, partial(self._draw, tensor), self.seed, name)

    def _draw(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        real = tensor.detach().to("cpu", self.dtype)
        shaken = real * (0.75 + 0.5 * torch.rand(real.shape, generator=generator, dtype=self.dtype))
        if not bool((real > 0).all()):  # variances stay positive
            scale = real.square().mean().sqrt() or real.new_tensor(1.0)
            noise = torch.randn(real.shape, generator=generator).to(self.dtype)
            shaken.add_(noise.mul_(0.05 * scale))
        return shaken.to(tensor.device)


@dataclass(frozen=True)
class InPrecision:
    """Keeps the weights, in another precision."""

    dtype: torch.dtype

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the weight in that precision."""
        return cast(tensor, self.dtype).clone()


class Randomised:
    """Draws weights that keep activations in range, whatever the network's depth."""

    def __init__(self, structure: Structure, seed: int, dtype: torch.dtype) -> None:
        self.structure, self.seed, self.dtype = structure, seed, dtype

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return a weight that is drawn."""
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        return _drawn(tensor, self.dtype, partial(self._draw, name, tensor), self.seed, name)

    def _draw(self, name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
        described = self.structure.tensors.get(name)
        role = described.role if described else Role.OTHER
        shape = tuple(tensor.shape)
        if role is Role.SCALE or (role is Role.STATISTIC and bool((tensor > 0).all())):
            drawn = torch.rand(shape, generator=generator, dtype=self.dtype).add_(0.5)
        else:  # a quarter of the time of drawing in float64
            drawn = torch.randn(shape, generator=generator).to(self.dtype)
            fan_in = max(tensor.numel() // max(shape[0], 1), 1) if role is Role.WEIGHT and shape else 200
            drawn.mul_((2 / fan_in) ** 0.5)
        if role is Role.OTHER:
            drawn.add_(tensor.detach().to("cpu", self.dtype))
        return drawn.to(tensor.device)


def _drawn(
    tensor: Tensor, dtype: torch.dtype, draw: Callable[[torch.Generator], Tensor], seed: int, name: str
) -> Tensor:
    """Return what is drawn from a seed of the tensor's own; anew at each use, where it is read on demand."""
    own = zlib.crc32(f"{seed}/{name}".encode())
    if isinstance(tensor, OnDemand):
        return OnDemand(tensor.shape, dtype, lambda: draw(torch.Generator().manual_seed(own)))
    return draw(torch.Generator().manual_seed(own))
