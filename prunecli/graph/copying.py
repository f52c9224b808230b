"""Copies of a module with other tensors in the place of its own, without copying a tensor twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from prunecli.errors import TraceError
from prunecli.graph.deepcopy import deepcopy


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters, then buffers, by their first name; a tied tensor appears once."""
    return members(model)[0]


def parameters_by_all_names(model: nn.Module) -> dict[str, Tensor]:
    """Return what `named_parameters` yields, tied ones by each of their names."""
    return dict(_members(model, repeated=True)[0])


def members(
    model: nn.Module, modules: Sequence[tuple[str, nn.Module]] | None = None
) -> tuple[dict[str, Tensor], set[str]]:
    """Return `named_tensors`, and the names that `named_parameters` yields.

    Args:
        model: any module.
        modules: what `walk(model)` returned.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    parameters, buffers = _members(model, modules)
    _add_new(parameters, found, seen)
    names = set(found)
    _add_new(buffers, found, seen)
    return found, names


def _add_new(named: Iterable[tuple[str, Tensor]], found: dict[str, Tensor], seen: set[int]) -> None:
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor


def _members(
    model: nn.Module, modules: Sequence[tuple[str, nn.Module]] | None = None, *, repeated: bool = False
) -> tuple[Iterable[tuple[str, Tensor]], Iterable[tuple[str, Tensor]]]:
    """Return what `named_parameters` and `named_buffers` yield, in one walk unless they are overridden.

    Args:
        model: any module.
        modules: what `walk` returned for it.
        repeated: by all names of a tensor; otherwise at least by the first.
    """
    kind = type(model)
    own = (kind.named_parameters, kind.named_buffers, kind.named_modules, kind._named_members)
    if own != _OF_MODULE:
        unique = not repeated
        return model.named_parameters(remove_duplicate=unique), model.named_buffers(remove_duplicate=unique)
    parameters, buffers = [], []
    for name, module in walk(model, repeated=repeated) if modules is None else modules:
        prefix = f"{name}." if name else ""
        if module._parameters:
            parameters += [
                (prefix + key, each) for key, each in module._parameters.items() if each is not None
            ]
        if module._buffers:
            buffers += [(prefix + key, each) for key, each in module._buffers.items() if each is not None]
    return parameters, buffers


_OF_MODULE = (
    nn.Module.named_parameters,
    nn.Module.named_buffers,
    nn.Module.named_modules,
    nn.Module._named_members,
)


def walk(model: nn.Module, *, repeated: bool = False) -> list[tuple[str, nn.Module]]:
    """Return what `named_modules` yields: every module from the root down, once, by its first name.

    Args:
        model: any module.
        repeated: by all of its names.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    pending = [("", model)]
    while pending:
        named = pending.pop()
        name, module = named
        if not repeated:
            if module in seen:
                continue
            seen.add(module)
        if type(module).named_modules is not _NAMED_MODULES:
            every = module.named_modules(prefix=name, remove_duplicate=not repeated)
            inner = [each for each in every if each[1] not in seen]
            if not repeated:
                seen.update(each for _, each in inner)
            found += inner if repeated else [named, *inner]
            continue
        found.append(named)
        children = module._modules
        if children:
            prefix = f"{name}." if name else ""
            pending += [
                (prefix + key, child) for key, child in reversed(children.items()) if child is not None
            ]
    return found


_NAMED_MODULES = nn.Module.named_modules


def aliases(model: nn.Module) -> dict[str, str]:
    """Return the other names of tied tensors -> their first name."""
    first: dict[int, str] = {}
    every = [each for named in _members(model, repeated=True) for each in named]
    return {name: known for name, tensor in every if (known := first.setdefault(id(tensor), name)) != name}


def copy_module(
    model: nn.Module,
    replace: Callable[[str, Tensor], Tensor],
    constant: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Return a deep copy in which `replace(name, tensor)` stands for each parameter and buffer.

    The kind of tensor is kept: what replaces a parameter becomes one. `constant` maps tensors that
    are plain attributes of modules (default: a clone). Tied tensors stay tied.

    Raises:
        TraceError: a module holds something that cannot be copied.
    """
    memo: dict[int, object] = {}
    modules = walk(model)
    for name, tensor in members(model, modules)[0].items():
        replacement = replace(name, tensor)
        if isinstance(tensor, nn.Parameter):
            trains = tensor.requires_grad and replacement.is_floating_point()
            replacement = nn.Parameter(replacement, requires_grad=trains)
        memo[id(tensor)] = replacement
    for _, module in modules:
        for value in vars(module).values():
            if isinstance(value, Tensor) and id(value) not in memo:
                detached = value.detach()
                memo[id(value)] = constant(detached) if constant else detached.clone()
    try:
        copied: nn.Module = deepcopy(model, memo)
        return copied
    except Exception as error:  # whatever a module's own __deepcopy__ or __reduce__ raises
        raise TraceError(
            f"`{type(model).__name__}` cannot be copied: {error}. "
            "Pruning works on a copy; remove what cannot be copied from the module's attributes."
        ) from error


def duplicate(tensor: Tensor) -> Tensor:
    """Return a clone without history. Without data, that is a new tensor, which is made much sooner."""
    if tensor.is_meta and _is_plain(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return tensor.detach().clone()


def _is_plain(tensor: Tensor) -> bool:
    is_usual = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return is_usual and tensor.is_contiguous()


def clean_copy(model: nn.Module) -> nn.Module:
    """Return a copy without history: activations that a module has kept are tensors like any other."""
    return copy_module(model, lambda _, tensor: duplicate(tensor))


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device: shapes without memory."""

    def to_meta(tensor: Tensor) -> Tensor:
        if _is_plain(tensor):
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return torch.empty_like(tensor, device="meta", requires_grad=False)

    return copy_module(model, lambda _, tensor: to_meta(tensor), to_meta)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same numbers; nan is nan."""
    same = left == right
    if left.is_floating_point():
        same |= left.isnan() & right.isnan()
    return bool(same.all())
