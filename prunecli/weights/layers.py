"""Calls of linear layers and convolutions in a forward pass: which position of a weight meets which unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.graph.structure import Structure

_CONVOLUTIONS = {f"conv{dims}d" for dims in (1, 2, 3)}
_TRANSPOSED = {f"conv_transpose{dims}d" for dims in (1, 2, 3)}
_OPERANDS = ("input", "weight", "bias")
_GROUPS_AT = 6


@dataclass(frozen=True)
class Layout:
    """How the first two dimensions of a weight hold inputs and outputs.

    A convolution's weight is [out, in / groups, ...], a transposed one's [in, out / groups, ...].
    """

    groups: int = 1
    transposed: bool = False

    def over_inputs(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return a number per input unit in a shape that multiplies the weight."""
        return _along_first(values, weight) if self.transposed else self._along_second(values, weight)

    def over_outputs(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return a number per output unit in a shape that multiplies the weight."""
        return self._along_second(values, weight) if self.transposed else _along_first(values, weight)

    def input_energies(self, weight: Tensor) -> Tensor:
        """Return the squared norm of what reads each input unit."""
        return _of_first(weight) if self.transposed else self._of_second(weight)

    def output_energies(self, weight: Tensor) -> Tensor:
        """Return the squared norm of what makes each output unit."""
        return self._of_second(weight) if self.transposed else _of_first(weight)

    def _along_second(self, values: Tensor, weight: Tensor) -> Tensor:
        each = len(weight) // self.groups
        spread = values.reshape(self.groups, 1, -1).expand(-1, each, -1)
        return spread.reshape(len(weight), -1, *[1] * (weight.dim() - 2))

    def _of_second(self, weight: Tensor) -> Tensor:
        parts = weight.detach().reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)
        norms: Tensor = torch.linalg.vector_norm(parts, dim=(1, 3), dtype=torch.float64)
        return norms.square().flatten()


def _along_first(values: Tensor, weight: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def _of_first(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten(1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return norms.square()


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a linear layer or convolution."""

    func: Callable[..., Any]
    data: Tensor
    weight: Tensor
    rest: tuple[Any, ...]
    """Positional arguments behind the bias."""
    options: Mapping[str, Any]
    layout: Layout

    @staticmethod
    def of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LayerCall | None:
        """Return the call as one of a layer; None if it is none."""
        name = getattr(func, "__name__", "")
        if name != "linear" and name not in _CONVOLUTIONS | _TRANSPOSED:
            return None
        given = {**dict(zip(_OPERANDS, args, strict=False)), **kwargs}
        groups = given.get("groups", args[_GROUPS_AT] if len(args) > _GROUPS_AT else 1)
        options = {key: value for key, value in kwargs.items() if key not in _OPERANDS}
        layout = Layout(groups, name in _TRANSPOSED)
        return LayerCall(func, given["input"], given["weight"], args[3:], options, layout)

    @property
    def dim(self) -> int:
        """Along which dimension, counted from the last, units lie in the data and in the result."""
        return 1 - self.weight.dim()

    def product(self, data: Tensor, weight: Tensor) -> Tensor:
        """Return what the layer makes of other data and another weight, without bias."""
        product: Tensor = self.func(data, weight, None, *self.rest, **self.options)
        return product


def names_of_parameters(model: nn.Module, structure: Structure) -> dict[int, str]:
    """Return the canonical name of each parameter object of the model, by its id."""
    return {
        id(parameter): structure.aliases.get(name, name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
