"""Model + structure -> the names of the weights that can be pruned one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunecli.errors import UsageError
from prunecli.graph.constraints import IS_OUTPUT
from prunecli.graph.structure import Role, Structure
from prunecli.weights.choosing import matches


def prunable_weights(
    model: nn.Module, structure: Structure, with_classifier: bool = False, ignore: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the names of the weights of convolutions and linear layers, in the order of the model.

    Of a weight that is normalised, that is its direction alone: its lengths are scales.

    The classifier is what the outputs of the network come from: those layers that are the last before an
    output, and those whose units could not be cut because they are outputs.

    Args:
        model: The network.
        structure: What goes together in it.
        with_classifier: Count the classifier's weights too.
        ignore: Patterns of layers that are left alone.

    Raises:
        UsageError: A pattern names no such layer.
    """
    outputs = set(structure.outputs)
    outputs |= {name for axis in structure.frozen if axis.reason == IS_OUTPUT for name in axis.tensors}
    tables = {
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    spared = tables | set(_lengths(model))
    contracted = tuple(
        name
        for name, tensor in structure.parameters()
        if tensor.role is Role.WEIGHT and name not in spared and (with_classifier or name not in outputs)
    )
    for pattern in ignore:
        if not any(matches(pattern, name) for name, _ in structure.parameters()):
            raise UsageError(
                f"`--ignore {pattern}`: no layer has such a name; `prunecli inspect` lists them."
            )
    return tuple(name for name in contracted if not any(matches(pattern, name) for pattern in ignore))


def _lengths(model: nn.Module) -> Iterator[str]:
    """Yield the names of the lengths of normalised weights, written in torch's new way or in its old one."""
    for name, module in model.named_modules():
        if isinstance(module, _WeightNorm):
            yield f"{name.rpartition('.')[0]}.original0"
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield f"{name}.{hook.name}_g".lstrip(".")
