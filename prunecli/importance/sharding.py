"""A network larger than one device: parameters parted among processes, those of a layer whole while it runs.

This is FSDP2 (`torch.distributed.fsdp.fully_shard`), layer by layer. No gradient of a parameter is taken:
those would be summed over the processes, which look at different micro-batches. What is looked at are
activations and gates, which are whole in every process; and parameters one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from prunecli.errors import NotPrunableError, UsageError
from prunecli.give_back import give_back_at_once
from prunecli.graph.copying import copy_module
from prunecli.graph.structure import Structure
from prunecli.graph.twins import install
from prunecli.importance.registry import Needs, find_method, methods

_WHOLE = Needs.GRADIENTS | Needs.CURVATURE | Needs.LOSSES
"""What a method needs the whole network for."""

_BY_GATES = ("taylor-fo",)
"""Methods that make of gradients of parameters what gates tell too."""


"""What glibc calls the size of blocks that it hands back, and that size in bytes."""


def refuse_unsharded(names: Sequence[str]) -> None:
    """Refuse methods that cannot look at a network which is parted.

    Raises:
        UsageError: one of them cannot; the message names those that can.
    """
    able = [info.name for info in methods() if _can_shard(info.name)]
    for name in names:
        if find_method(name).name not in able:
            raise UsageError(
                f"`--shard` and `--method {name}`: it needs gradients of whole parameters, or runs the "
                f"network too often. These can: {', '.join(able)}."
            )


def shard(
    model: nn.Module, structure: Structure, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Structure]:
    """Return the network with its parameters parted among all processes, and its structure.

    Each process holds its part of every parameter, and never more than one layer besides: a layer is brought
    to the device, parted and let go before the next one. A module whose parameters are used in several places
    stays whole while the network runs.

    Args:
        model: on the CPU, best with parameters that are mapped from a file; it stays as it is.
        structure: what `find_groups` found on it.
        device: where its parts go.
        dtype: the precision of its parts.

    Raises:
        NotPrunableError: a module keeps its parameters where they cannot be parted.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            raise NotPrunableError(
                f"`--shard`: `{name}` ({type(module).__name__}) keeps its parameters in a list of its own, "
                "and they cannot be parted. Score it in one piece."
            )
    give_back_at_once()  # or blocks of every layer would be kept
    parted = copy_module(model, lambda _, tensor: tensor.detach())
    install(parted, structure.rewritten)
    parted.requires_grad_(False)
    mesh = _mesh(device)
    moved: dict[int, nn.Parameter] = {}
    originals = list(parted.parameters())  # alive until the end, so that ids stay unique
    for module in [*_layers(parted), parted]:
        _move(module, device, dtype, moved)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if module is not parted:
            moved.clear()
    del originals
    return parted, replace(structure, rewritten={})


def _can_shard(name: str) -> bool:
    return name in _BY_GATES or not find_method(name).needs & _WHOLE


def _mesh(device: torch.device) -> DeviceMesh:
    """Return all processes: on GPUs, they speak by NCCL."""
    if device.type != "cuda":
        return init_device_mesh(device.type, (distributed.get_world_size(),))
    group = distributed.new_group(backend="nccl")
    assert isinstance(group, distributed.ProcessGroup)  # this process is one of it
    return DeviceMesh.from_group(group, "cuda")


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules with parameters of their own that nobody else uses, innermost first."""
    uses = Counter(
        id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    insides = {
        id(inner)
        for module in model.modules()
        if type(module) is nn.MultiheadAttention  # reads the weights of its projection
        for inner in module.modules()
        if inner is not module
    }
    return [
        module
        for module in reversed(list(model.modules()))
        if module is not model
        and id(module) not in insides
        and any(True for _ in module.parameters(recurse=False))
        and all(uses[id(parameter)] == 1 for parameter in module.parameters())
    ]


def _move(
    module: nn.Module, device: torch.device, dtype: torch.dtype, moved: dict[int, nn.Parameter]
) -> None:
    """Bring what is not parted yet to its device and precision; what is tied stays so."""
    for inner in module.modules():
        for name, parameter in list(inner.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                kind = dtype if parameter.is_floating_point() else None
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(parameter.detach().to(device, kind), False)
                inner._parameters[name] = moved[id(parameter)]
        for name, buffer in list(inner.named_buffers(recurse=False)):
            inner._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else None)
