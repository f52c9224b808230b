"""Weights other than the real ones, drawn tensor by tensor: by them a mistake of structure shows."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from prunecli.graph.structure import Role, Structure
from prunecli.on_demand import OnDemand, joined

Draw: TypeAlias = Callable[[str, Tensor], Tensor]
"""What stands for a tensor of the model, by its name."""

_AT_ONCE: Final = 1 << 20
"""How many numbers are drawn at once: what is needed beside the result stays small."""
_WORTH_MAKING_ANEW: Final = 1 << 16
"""Tensors of fewer numbers are held."""


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor without its history, in that precision if it has any."""
    tensor = tensor.detach()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class Shaken:
    """Changes each weight by up to a quarter of itself and a little more, so that none are alike or zero."""

    def __init__(self, seed: int, dtype: torch.dtype, *, on_demand: bool = False) -> None:
        self.seed, self.dtype, self.on_demand = seed, dtype, on_demand

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the weight, shaken."""
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        draw = partial(self._draw, tensor, _seed_of(self.seed, name))
        return _made(tensor, self.dtype, draw, self.on_demand)

    def _draw(self, tensor: Tensor, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise = 0.0
        if not all(bool((part > 0).all()) for part in _blocks(tensor)):  # variances stay positive
            squares = sum(float(part.to(self.dtype).square().sum()) for part in _blocks(tensor))
            noise = 0.05 * ((squares / max(tensor.numel(), 1)) ** 0.5 or 1.0)
        for part in _blocks(tensor):
            shaken = torch.empty(part.shape, dtype=self.dtype)
            shaken.uniform_(0.75, 1.25, generator=generator).mul_(part)
            if noise:
                shaken.add_(torch.randn(part.shape, generator=generator), alpha=noise)
            yield shaken


@dataclass(frozen=True)
class InPrecision:
    """Keeps the weights, in another precision."""

    dtype: torch.dtype
    on_demand: bool = False

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the weight in that precision."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        if isinstance(tensor, OnDemand):
            return cast(tensor, dtype)
        if _is_made_anew(tensor, self.on_demand):
            return OnDemand(
                tensor.shape,
                dtype,
                lambda: cast(tensor, dtype).clone(),
                lambda: (cast(part, dtype).clone() for part in _blocks(tensor)),
            )
        return cast(tensor, dtype).clone()


class Randomised:
    """Draws weights that keep activations in range, whatever the network's depth."""

    def __init__(
        self, structure: Structure, seed: int, dtype: torch.dtype, *, on_demand: bool = False
    ) -> None:
        self.structure, self.seed, self.dtype, self.on_demand = structure, seed, dtype, on_demand

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return a weight that is drawn."""
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        draw = partial(self._draw, name, tensor, _seed_of(self.seed, name))
        return _made(tensor, self.dtype, draw, self.on_demand)

    def _draw(self, name: str, tensor: Tensor, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        described = self.structure.tensors.get(name)
        role = described.role if described else Role.OTHER
        is_weight = role is Role.WEIGHT and tensor.dim() > 0
        fan_in = max(tensor.numel() // max(len(tensor), 1), 1) if is_weight else 200
        is_positive = role is Role.SCALE or (role is Role.STATISTIC and bool((tensor > 0).all()))
        for part in _blocks(tensor):
            if is_positive:
                yield torch.empty(part.shape, dtype=self.dtype).uniform_(0.5, 1.5, generator=generator)
                continue
            # a quarter of the time of drawing in float64
            drawn = torch.randn(part.shape, generator=generator).mul_((2 / fan_in) ** 0.5).to(self.dtype)
            yield drawn.add_(part) if role is Role.OTHER else drawn


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in blocks of its first dimension, on the CPU; a tensor without dimensions as it is."""
    if isinstance(tensor, OnDemand):
        tensor = tensor.read()
    tensor = tensor.detach()
    rows = max(_AT_ONCE * len(tensor) // max(tensor.numel(), 1), 1) if tensor.dim() else 1
    for part in tensor.split(rows) if tensor.dim() else (tensor,):
        yield part.cpu()


def _seed_of(seed: int, name: str) -> int:
    """Return a seed of the tensor's own, by which it is drawn alike however often that is done."""
    return zlib.crc32(f"{seed}/{name}".encode())


def _made(
    tensor: Tensor, dtype: torch.dtype, draw: Callable[[], Iterator[Tensor]], on_demand: bool
) -> Tensor:
    """Return the weight that comes in blocks."""

    def make() -> Tensor:
        return joined(draw(), tensor.shape, dtype).to(tensor.device)

    return OnDemand(tensor.shape, dtype, make, draw) if _is_made_anew(tensor, on_demand) else make()


def _is_made_anew(tensor: Tensor, on_demand: bool) -> bool:
    """Return whether to make what stands for the tensor at each use: that spares memory.

    Buffers may be written to, and small tensors cost more time than memory.
    """
    spares = (
        on_demand
        and isinstance(tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.numel() >= _WORTH_MAKING_ANEW
    )
    return spares or isinstance(tensor, OnDemand)
