"""Which layers a forward pass runs, and what follows each before anything else reads its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunecli.graph.calls import CallWatch, following
from prunecli.graph.structure import CallKey
from prunecli.graph.trace import plain_kernels

LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
IN_PLACE = frozenset({"__iadd__", "add_"})
SUMS = frozenset({"add", "__add__", "__radd__"}) | IN_PLACE
RECTIFIERS = frozenset({"relu", "relu_"})


@dataclass(frozen=True)
class Chain:
    """A layer, and the normalisation and the sum that nothing but it leads into."""

    layer: CallKey
    weight: str
    bias: str | None
    norm: CallKey | None
    """A batch normalisation in evaluation mode: per channel a factor and a shift."""
    mean: str | None
    """The running mean of that."""
    sum: CallKey | None
    """An addition of two tensors, one of which is the output."""
    place: int
    """Which operand of the addition that is."""
    rectified: bool
    """Whether a ReLU alone reads what comes out."""
    is_output: bool
    """Whether the network puts out what comes out."""

    @property
    def end(self) -> CallKey:
        """The last call of the chain."""
        return self.sum or self.norm or self.layer


@dataclass
class _Called:
    """One call, as the dry run saw it."""

    key: CallKey
    operands: list[CallKey | None]
    """Per positional operand that is a tensor, the call that it came from."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    read_by: list[CallKey] = field(default_factory=list)


class Dataflow(CallWatch):
    """Runs a forward pass and notes which call reads what other call put out."""

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__(modules)
        self.calls: dict[CallKey, _Called] = {}
        self.origin = WeakTensorKeyDictionary()

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call, and note where its operands come from."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for origin in {self.origin[tensor] for tensor in tensors if tensor in self.origin}:
            self.calls[origin].read_by.append(key)
        operands = [self.origin.get(arg) if isinstance(arg, Tensor) else None for arg in args]
        result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if results:
            self.calls[key] = _Called(key, operands, args, kwargs)
            for tensor in results:
                self.origin[tensor] = key
        return result


def find_chains(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Chain, ...]:
    """Return the chains of all layers whose weight one call alone reads, in the order they run."""
    with torch.no_grad(), following(model) as modules, plain_kernels():
        watch = Dataflow(modules)
        with watch:
            output = model(*args, **kwargs)
    outputs = {watch.origin.get(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = {id(tensor): name for name, tensor in tensors}
    return tuple(_chains(watch.calls, names, outputs))


def _chains(
    calls: Mapping[CallKey, _Called], names: Mapping[int, str], outputs: set[CallKey | None]
) -> Iterator[Chain]:
    used: dict[str, int] = {}
    for call in calls.values():
        for leaf in tree_leaves((call.args, call.kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in names:
                used[names[id(leaf)]] = used.get(names[id(leaf)], 0) + 1
    for call in calls.values():
        if call.key.function not in LAYERS or len(call.args) < 2 or id(call.args[1]) not in names:
            continue
        weight = names[id(call.args[1])]
        bias_tensor = call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")
        bias = None if bias_tensor is None else names.get(id(bias_tensor))
        if used[weight] > 1 or (bias_tensor is not None and (bias is None or used[bias] > 1)):
            continue
        end, norm, mean, sum_, place = call, None, None, None, 0
        following_call = _sole_reader(calls, end, outputs)
        found = _running_mean(following_call, names) if following_call is not None else None
        if following_call is not None and found is not None and used[found] == 1:
            norm, mean, end = following_call.key, found, following_call
            following_call = _sole_reader(calls, end, outputs)
        if following_call is not None and _adds_two(following_call) and end.key in following_call.operands:
            place = following_call.operands.index(end.key)
            sum_, end = following_call.key, following_call
            following_call = _sole_reader(calls, end, outputs)
        rectified = following_call is not None and following_call.key.function in RECTIFIERS
        yield Chain(call.key, weight, bias, norm, mean, sum_, place, rectified, end.key in outputs)


def _sole_reader(
    calls: Mapping[CallKey, _Called], call: _Called, outputs: set[CallKey | None]
) -> _Called | None:
    """Return the one call that reads a result; None if there are others, or the network puts it out."""
    readers = [key for key in call.read_by if key.function not in {"__get__", "size", "dim", "__len__"}]
    if len(readers) != 1 or call.key in outputs:
        return None
    return calls.get(readers[0])


def _running_mean(call: _Called, names: Mapping[int, str]) -> str | None:
    """Return the name of the running mean that a batch normalisation uses; None for other calls."""
    if call.key.function != "batch_norm" or len(call.args) < 2 or not isinstance(call.args[1], Tensor):
        return None
    training = call.args[5] if len(call.args) > 5 else call.kwargs.get("training", False)
    return None if training else names.get(id(call.args[1]))


def _adds_two(call: _Called) -> bool:
    """Return whether a call adds two tensors of one shape, and nothing else."""
    tensors = [arg for arg in call.args if isinstance(arg, Tensor)]
    is_sum = call.key.function in SUMS and len(call.args) == len(tensors) == 2 and not call.kwargs
    return is_sum and tensors[0].shape == tensors[1].shape and None not in call.operands
