"""Network -> for each weight, how large what stands before its inputs and behind its outputs is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from prunecli.graph.calls import CallWatch, following
from prunecli.graph.outputs import tensors_in
from prunecli.graph.structure import CallKey
from prunecli.graph.trace import plain_kernels
from prunecli.importance.gradients import explained
from prunecli.weights.flows import Flow, Source, added, moved, summed
from prunecli.weights.layers import LayerCall, Layout, names_of_parameters
from prunecli.weights.network import Network

_ELEMENTWISE = frozenset(
    {
        "relu", "relu_", "leaky_relu", "leaky_relu_", "relu6", "hardtanh", "hardtanh_", "threshold",
        "threshold_", "prelu", "rrelu", "elu", "elu_", "selu", "selu_", "celu", "gelu", "silu", "mish",
        "hardswish", "hardsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "softsign",
        "logsigmoid", "clamp", "clamp_", "clip", "abs", "exp", "sqrt", "square", "dropout", "dropout1d",
        "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "contiguous", "clone", "detach",
        "to", "float", "double", "half", "bfloat16", "type", "neg", "__neg__", "identity", "normalize",
        "local_response_norm", "log_softmax", "stochastic_depth",
    }
)  # fmt: skip
"""Functions after which each position is still the same unit."""
_MOVING = frozenset(
    {
        "flatten", "unflatten", "reshape", "view", "view_as", "reshape_as", "permute", "transpose",
        "swapaxes", "movedim", "t", "__get__", "unsqueeze", "squeeze", "expand", "expand_as", "repeat",
        "repeat_interleave", "tile", "cat", "concat", "concatenate", "stack", "chunk", "split",
        "split_with_sizes", "tensor_split", "unbind", "narrow", "select", "__getitem__", "index_select",
        "roll", "flip", "rot90", "pad", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d",
        "avg_pool3d", "lp_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "mean", "sum", "amax",
        "interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
        "native_channel_shuffle", "unfold", "max_unpool2d",
    }
)  # fmt: skip
"""Functions that put positions elsewhere, or take one number for several; all by position, not by value."""
_ADDING = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__isub__",
                     "__rsub__", "rsub", "subtract"})  # fmt: skip
_MULTIPLYING = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"})
_DIVIDING = frozenset({"div", "div_", "__truediv__", "__itruediv__", "true_divide", "divide"})
_LOOKUPS = frozenset({"embedding", "embedding_bag", "one_hot"})
_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
_NORMS: Mapping[Callable[..., Any], int] = {
    F.batch_norm: 1, F.instance_norm: 1, F.group_norm: 1, F.layer_norm: -1,
    getattr(F, "rms_norm", F.layer_norm): -1,
}  # fmt: skip
"""Normalisations, and the dimension that their scale belongs to; -1: the last ones."""
TINY = 1e-10
"""What published code adds to a running variance."""


@dataclass(eq=False)
class Around:
    """What stands around one weight."""

    layout: Layout
    inputs: Tensor
    """The squared norm of what makes each of its input units, over all calls: [in]."""
    source: Source
    """Its output, with what reads it."""
    hidden: set[str] = field(default_factory=set)
    """Functions that hide what makes its inputs."""

    @property
    def outputs(self) -> Tensor:
        """The squared norm of what reads each of its output units, 1 where nothing does: [out]."""
        return torch.where(self.source.is_read, self.source.readers, 1)


def find_neighbours(network: Network, with_norms: bool) -> dict[str, Around]:
    """Run the example once, and return what stands around each weight that a layer's call reads.

    Args:
        network: The model.
        with_norms: Count the scales of normalisations in between.

    Raises:
        ScoreError: The model fails.
    """
    model = network.model
    args, kwargs = network.example
    with explained("The example"), torch.no_grad(), plain_kernels(), following(model) as modules:
        watch = _Following(modules, names_of_parameters(model, network.structure), with_norms)
        for tensor in tensors_in((args, dict(kwargs))):
            watch.flows[tensor] = Flow.ones(tensor)
        with watch:
            model(*args, **kwargs)
    return watch.around


class _Following(CallWatch):
    """Runs forward, and lets squared norms run with the data.

    Args:
        modules: The names of the modules that are running; see `following`.
        names: Id of a parameter -> its name.
        with_norms: Count the scales of normalisations.
    """

    def __init__(self, modules: Sequence[str], names: Mapping[int, str], with_norms: bool) -> None:
        super().__init__(modules)
        self.names, self.with_norms = names, with_norms
        self.flows: Any = WeakIdKeyDictionary()
        self.around: dict[str, Around] = {}

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call, on the data and on what runs with them."""
        given = [self.flows[each] for each in tensors_in((args, kwargs)) if each in self.flows]
        result = func(*args, **kwargs)
        layer = LayerCall.of(func, args, kwargs)
        found = [tensor for tensor in tensors_in(result) if tensor.is_floating_point()]
        is_new = key.function.endswith("_like") or key.function.startswith("new_")
        if not found or is_new or not (given or layer):
            self._note_writing(key, args, given)
            return result
        with torch.enable_grad():
            flows = (
                self._read(layer, result) if layer else self._carried(key, func, args, kwargs, given, result)
            )
        if flows is None or [flow.energy.shape for flow in flows] != [tensor.shape for tensor in found]:
            for flow in given:
                flow.lose(key.function)
            flows = [Flow.ones(tensor, key.function) for tensor in found]
        for tensor, flow in zip(found, flows, strict=True):
            self.flows[tensor] = flow
        return result

    def _note_writing(self, key: CallKey, args: tuple[Any, ...], given: list[Flow]) -> None:
        """Forget what was known of a tensor that a part is written to."""
        if key.function == "__setitem__" and given:
            for flow in given:
                flow.lose(key.function)
            self.flows[args[0]] = Flow.ones(args[0], key.function)

    def _read(self, layer: LayerCall, result: Tensor) -> list[Flow]:
        """Note what a layer reads, and return its output."""
        flow = self.flows.get(layer.data) or Flow.ones(layer.data)
        name = self.names.get(id(layer.weight))
        units = flow.units(layer.dim)
        flow.read(units, layer.layout.input_energies(layer.weight))
        source = Source.of(layer.layout.output_energies(layer.weight))
        if name is not None:
            known = self.around.get(name)
            if known is None:
                known = self.around[name] = Around(layer.layout, torch.zeros_like(units), source)
            known.inputs = known.inputs + units.detach()
            known.hidden |= flow.hidden_by
            source = known.source
        return [Flow.made(source, layer.dim, result)]

    def _carried(
        self, key: CallKey, func: Callable[..., Any], args: Any, kwargs: Any, given: list[Flow], result: Any
    ) -> list[Flow] | None:
        """Return what becomes of the flows in a function; None if that is not known."""
        name = key.function
        if func in _NORMS:
            return [given[0].scaled(_scale(func, args, kwargs)) if self.with_norms else given[0]]
        if name in _LOOKUPS:
            return [Flow.ones(result)]
        if name in _ELEMENTWISE and len(given) == 1:
            return given
        if name in _MOVING:
            return self._moved(func, args, kwargs, given)
        if name in _ADDING:
            return [added(given, result.shape)]
        if name in _MULTIPLYING or name in _DIVIDING:
            return self._multiplied(name, args, given, result)
        if name in _PRODUCTS and len(given) == 2 and given[0].unknown:
            return [_attended(given[1], result)]
        if func is F.scaled_dot_product_attention:
            for flow in given[:2]:
                flow.lose(name)
            return [_attended(given[2], result)]
        return None

    def _moved(self, func: Callable[..., Any], args: Any, kwargs: Any, given: list[Flow]) -> list[Flow]:
        """Carry out a function on the norms themselves."""

        def energy(tensor: Tensor) -> Tensor:
            flow = self.flows.get(tensor)
            return _nothing(tensor) if flow is None else flow.energy

        def present(tensor: Tensor) -> Tensor:
            flow = self.flows.get(tensor)
            return _nothing(tensor) if flow is None else flow.present

        energies, there = (
            tensors_in(func(*tree_map_only(Tensor, of, args), **tree_map_only(Tensor, of, kwargs)))
            for of in (energy, present)
        )
        return [
            moved(given, one, other)
            for one, other in zip(energies, there, strict=True)
            if one.is_floating_point()
        ]

    def _multiplied(self, name: str, args: Any, given: list[Flow], result: Tensor) -> list[Flow] | None:
        """Return what becomes of data that are multiplied with a constant, a gate, or data of their size."""
        if len(given) == 2:
            whole = [flow for flow in given if flow.energy.shape == result.shape and not flow.unknown]
            known = whole and name in _MULTIPLYING
            return [summed(whole, result.shape, is_gated=True)] if known else None
        is_first = isinstance(args[0], Tensor) and args[0] in self.flows
        if len(args) < 2 or (name in _DIVIDING and not is_first):
            return None
        factor = args[1] if is_first else args[0]
        square = factor.detach().double().square() if isinstance(factor, Tensor) else float(factor) ** 2
        return [given[0].scaled(1 / square if name in _DIVIDING else square)]


def _scale(func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | float:
    """Return the squared scale of a normalisation, in a shape that multiplies its operand."""
    given = signature(func).bind(*args, **kwargs).arguments
    weight, variance = given.get("weight"), given.get("running_var")
    scale: Tensor | float = 1.0
    if weight is not None:
        scale = weight.detach().double().square()
    if variance is not None:
        scale = scale / (variance.double() + TINY)
    if not isinstance(scale, Tensor) or _NORMS[func] < 0:
        return scale
    return scale.reshape(-1, *[1] * (given["input"].dim() - 2))


def _attended(flow: Flow, result: Tensor) -> Flow:
    """Return what attention makes of its values: each place gets something of all of them."""
    energy, present = (each.sum(-2, keepdim=True) for each in (flow.energy, flow.present))
    return moved([flow], energy.expand(result.shape), present.expand(result.shape))


def _nothing(tensor: Tensor) -> Tensor:
    """Return what stands for a constant: no data. Indices stay."""
    return torch.zeros_like(tensor, dtype=torch.float64) if tensor.is_floating_point() else tensor
