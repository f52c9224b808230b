"""A freshly built model + the tensors and the record of a pruned file -> the pruned model.

This file needs torch alone. `prunecli.load` runs it, and `export --loader` copies it into the
stand-alone loader, so that both build the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

_REGISTERED = {"_parameters", "_buffers", "_modules"}
_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def rebuild(
    build: Callable[[str], nn.Module],
    rewrite: Callable[[nn.Module, Mapping[str, str]], None],
    tensors: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
) -> nn.Module:
    """Return the pruned model, ready to run.

    Args:
        build: Device ("meta" or "cpu") -> the dense model, freshly built.
        rewrite: Puts size-explicit twins in the place of the modules named.
        tensors: Parameters and buffers of the pruned model, tied ones once.
        record: What the file says of them: `attributes`, `rewritten`, `aliases`, `non_persistent`, `widened`.

    Raises:
        ValueError: when the tensors do not fit what was built.
    """
    for device in ("meta", "cpu"):  # the CPU is for tensors that are neither parameters nor buffers
        model = build(device)
        _rewrite(model, rewrite, record["rewritten"])
        set_attributes(model, record["attributes"])
        place_tensors(model, widen(tensors, record.get("widened", {})), record)
        if device == "cpu" or not any(tensor.is_meta for tensor in loose_tensors(model)):
            break
    return model.eval()


def _rewrite(model: nn.Module, rewrite: Callable[..., None], rewritten: Mapping[str, str]) -> None:
    """Put twins in place; it comes before the sizes change, since a twin keeps what the dense ones imply."""
    try:
        rewrite(model, rewritten)
    except (KeyError, AttributeError) as error:
        raise ValueError(f"a module that the file rewrites is not there: {error}") from None


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the sizes that Python code reads: module name -> attribute -> number, list or {"tuple": list}."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, values in attributes.items():
        if name not in modules:
            raise ValueError(f"the model has no module `{name}`, whose sizes the file sets")
        for attribute, value in values.items():
            if not isinstance(getattr(modules[name], attribute, None), (int, float, tuple, list)):
                raise ValueError(f"module `{name}` has no size `{attribute}`, which the file sets")
            setattr(modules[name], attribute, tuple(value["tuple"]) if isinstance(value, dict) else value)


def widen(tensors: Mapping[str, torch.Tensor], widened: Mapping[str, str]) -> Mapping[str, torch.Tensor]:
    """Give tensors that the file holds in fewer bits the precision that the model has: name -> dtype."""
    for name, precision in widened.items():
        if name not in tensors or not tensors[name].is_floating_point() or precision not in _PRECISIONS:
            raise ValueError(f"`{name}` is no tensor of the file that can become {precision}")
    return {
        name: tensor.to(_PRECISIONS[widened[name]]) if name in widened else tensor
        for name, tensor in tensors.items()
    }


def place_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Put every tensor of the file in the place of the parameter or buffer of that name."""
    aliases, extra = record["aliases"], set(record["non_persistent"])
    built = dict(named_tensors(model))
    missing = sorted(built.keys() - tensors.keys() - aliases.keys())
    unexpected = sorted((tensors.keys() | aliases.keys()) - built.keys() - extra)
    if missing or unexpected:
        raise ValueError(
            f"the tensors do not fit the model: {len(missing)} missing{_first(missing)}, "
            f"{len(unexpected)} unexpected{_first(unexpected)}"
        )
    placed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        old = built.get(name)
        if old is not None and old.dim() != tensor.dim():
            raise ValueError(f"`{name}` has {tensor.dim()} dimensions, but the model builds {old.dim()}")
        if old is not None and old.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"`{name}` is {tensor.dtype}, but the model builds {old.dtype}")
        placed[name] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    for name, source in aliases.items():
        if source not in placed:
            raise ValueError(f"`{name}` is tied to `{source}`, which the file does not hold")
        placed[name] = placed[source]
    for name, tensor in placed.items():
        _assign(model, name, tensor)
    _follow(model, {id(old): placed[name] for name, old in built.items()})


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and buffers, persistent or not, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def loose_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor that a module holds: parameters, buffers, and plain attributes, nested ones too."""
    for module in model.modules():
        for key, value in vars(module).items():
            if key != "_modules":
                yield from _inside(value)


def _inside(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value, which may be a tensor, or a list, tuple, set or dict of values."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple, set)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _inside(item)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace one parameter or buffer; a buffer that only the first forward makes is added."""
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the model has no module `{path}`, to which `{name}` belongs") from None
    if not key.isidentifier() or (
        hasattr(module, key) and key not in {*module._parameters, *module._buffers}
    ):
        raise ValueError(f"`{name}` is no name for a tensor of the model")
    if key in module._parameters or key in module._buffers:
        setattr(module, key, tensor)  # recurrent layers listen to this
    else:
        module.register_buffer(key, tensor, persistent=False)


def _follow(model: nn.Module, new: Mapping[int, torch.Tensor]) -> None:
    """Let plain lists and dicts of parameters, made by `__init__`, hold the new ones."""
    for module in model.modules():
        for key, value in vars(module).items():
            if key not in _REGISTERED and any(id(tensor) in new for tensor in _inside(value)):
                vars(module)[key] = _replaced(value, new)


def _replaced(value: Any, new: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return new.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(_replaced(item, new) for item in value)
    if type(value) is dict:
        return {key: _replaced(item, new) for key, item in value.items()}
    return value


def _first(names: list[str]) -> str:
    return f" (`{names[0]}`, ...)" if len(names) > 1 else f" (`{names[0]}`)" if names else ""
