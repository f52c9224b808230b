"""nn.Module + example input -> Structure: the groups of units that can be cut, and what cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunecli.graph.borrowing import eval_mode, kept_rng, uncollected
from prunecli.graph.probe import freeze_what_fails
from prunecli.graph.structure import Structure
from prunecli.graph.trace import trace


def find_groups(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Structure:
    """Find which units of `model` go together across layers, by executing it once on the meta device.

    Every group returned has been cut, together with all others, on a copy without data: the
    remaining positions were where the labels predict. What fails there, and what an operation
    without a rule touches, is listed in `Structure.frozen` with the reason.

    Args:
        model: any module; it is not touched.
        args: positional inputs, a batch of one sample, on any device.
        kwargs: keyword inputs.

    Raises:
        TraceError: the forward pass fails for these inputs.
    """
    with kept_rng(), eval_mode(model), uncollected():
        traced = trace(model, args, kwargs)
        return freeze_what_fails(traced, args, dict(kwargs or {}))
