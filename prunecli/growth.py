"""What a model may grow to while it is built: a spec of a few bytes may ask for a hundred million layers.

Modules, parameters and buffers are counted as they are registered, which is before their memory is filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules import module as registry

from prunecli.errors import SpecError

_PARTS = 300_000
"""How many modules and tensors a model may have of which nothing else is known."""
_PARTS_PER_TENSOR, _FEW_PARTS = 20, 5_000
_VALUES_PER_VALUE, _FEW_VALUES = 400, 2**26
"""A pruned file holds a few per cent of the values of the dense model that is built first."""


@dataclass(frozen=True)
class Ceiling:
    """How many modules and tensors, and values in memory, may be registered at most."""

    parts: int = _PARTS
    values: int | None = None
    """None: as many as there is memory for."""

    @classmethod
    def over(cls, tensors: Mapping[str, Tensor]) -> Ceiling:
        """Return what a model may grow to that is to hold these tensors, pruned or not.

        >>> import torch
        >>> Ceiling.over({"weight": torch.zeros(2, 3)})
        Ceiling(parts=5020, values=67111264)
        """
        values = sum(tensor.numel() for tensor in tensors.values())
        return cls(_PARTS_PER_TENSOR * len(tensors) + _FEW_PARTS, _VALUES_PER_VALUE * values + _FEW_VALUES)


@contextmanager
def growing_to(ceiling: Ceiling, factory: str) -> Iterator[None]:
    """Refuse to build more than the ceiling inside the block.

    Args:
        ceiling: how much may be built.
        factory: what builds it, for the message.

    Raises:
        SpecError: it is more. Nothing of it is kept.
    """
    parts = values = 0

    def count(_: nn.Module, __: str, part: object) -> None:
        nonlocal parts, values
        parts += part is not None
        if isinstance(part, Tensor) and not part.is_meta and not nn.parameter.is_lazy(part):
            values += part.numel()
        if parts > ceiling.parts:
            raise _too_large(factory, f"{ceiling.parts:,} layers and parameters", ceiling)
        if ceiling.values is not None and values > ceiling.values:
            raise _too_large(factory, f"{ceiling.values:,} values", ceiling)

    handles = (
        registry.register_module_module_registration_hook(count),
        registry.register_module_parameter_registration_hook(count),
        registry.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _too_large(factory: str, amount: str, ceiling: Ceiling) -> SpecError:
    held = "the checkpoint could hold" if ceiling.values is not None else "any model that can be pruned has"
    return SpecError(
        f"`{factory}` builds more than {amount}, which is more than {held}. It was stopped: check its "
        "arguments."
    )
