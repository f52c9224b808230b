"""Model + inputs -> the first module that makes numbers which are not finite, in words for an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def where_not_finite(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> str:
    """Run forward once more, without gradients, and say which module first puts out NaN or infinity.

    A module whose inputs are finite and whose output is not is to blame; the innermost one, if several are.

    Args:
        model: runs in the mode that it is in; what it keeps of its own, such as statistics, may change.
        args: positional inputs, where the model is.
        kwargs: keyword inputs.

    Returns:
        A sentence with a space before it, or nothing where no module was found.
    """
    if not _all_finite((args, kwargs)):
        return " The inputs hold NaN or infinity themselves."
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not found and _all_finite((args, kwargs)) and not _all_finite(output):
            name = f"`{names[module]}`" if names[module] else "The model's own forward"
            found.append(f" {name} ({type(module).__name__}) is the first to put out {_what_of(output)}.")

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    try:
        with torch.no_grad():
            model(*args, **(kwargs or {}))
    except Exception:  # what stops it here did not stop it before: there is nothing to add
        return ""
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _all_finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _floats(value))


def _what_of(output: Any) -> str:
    return "NaN" if any(bool(tensor.isnan().any()) for tensor in _floats(output)) else "infinity"


def _floats(value: Any) -> list[Tensor]:
    return [
        leaf
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]
