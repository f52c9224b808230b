"""nn.Module + one sample -> MACs, parameters and activation memory, in all and per module.

MACs come from torch's own FlopCounterMode, halved. The model runs on the meta device: no data, no
memory. What the counter does not know is listed, never silently zero.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from prunecli.errors import TraceError
from prunecli.graph.copying import copy_to_meta
from prunecli.on_demand import OnDemand
from prunecli.report import LayerFacts, ModelFacts

_CONTRACTS = re.compile(
    r"(^|_)(add|badd)?b?(mm|mv|dot|matmul|einsum|linear|trilinear)($|_)|bilinear$"
    r"|conv(olution|_|[123]d)|lstm|gru(_|$)|rnn|attention|cdist|_fft_"
)
"""Names of operations that multiply and add."""
_FREE = frozenset({  # fmt: skip
    "native_batch_norm", "native_layer_norm", "native_group_norm", "batch_norm", "layer_norm",
    "group_norm", "instance_norm", "rms_norm", "_fused_rms_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm", "sum", "mean", "var",
    "var_mean", "std", "norm", "linalg_vector_norm", "_weight_norm_interface", "amax", "amin", "max",
    "min", "softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum",
    "embedding", "index", "index_select", "gather", "scatter", "cat", "stack", "clone", "copy_", "copy",
    "_to_copy", "constant_pad_nd", "pad", "repeat", "roll", "flip", "sort", "topk", "tril", "triu",
    "native_dropout", "unfold_backward", "im2col", "contiguous", "_local_scalar_dense", "item",
    "is_same_size", "empty_like", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
    "lift_fresh", "_unsafe_index", "_unsafe_view", "unbind_copy", "split_copy", "view_copy",
    "as_strided_copy", "expand_copy", "slice_scatter",
})  # fmt: skip
"""Operations on parameters that by convention cost nothing: they move, normalise or look up."""


@dataclass(frozen=True)
class Costs:
    """What one sample costs. Modules are named as in `named_modules`; the root is the empty name."""

    macs: int
    macs_of: Mapping[str, int]
    """Arithmetic of a module's own forward, without its children's. Where it uses a child's parameter
    without calling the child, that counts as the child's. Sums to `macs`."""
    params: int
    params_of: Mapping[str, int]
    """Parameters a module holds itself; tied ones count where they appear first. Sums to `params`."""
    parameter_bytes: int
    not_counted: tuple[str, ...]
    """Operations that multiply and add, but are unknown to torch's counter: `op at module (times)`."""
    activation_bytes_of: Mapping[str, int]
    """What a module puts out for one sample, all its calls together."""
    peak_activation_bytes: int
    """The most that intermediate tensors hold at one time: the inputs and parameters are not among them.
    Attention counts as plain matrix products: fused kernels hold less."""


def measure_costs(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor] | None = None
) -> Costs:
    """Count parameters, and the multiply-accumulates of one eval-mode forward.

    Args:
        model: Left as it is; a copy runs.
        args: One sample, batch 1; values matter only to code that asks tensors for them.
        kwargs: Inputs passed by name.

    Raises:
        TraceError: when the model does not run on this sample.
    """
    kwargs = kwargs or {}
    try:
        tally = _run(copy_to_meta(model), _to_meta(tuple(args)), _to_meta(dict(kwargs)))
    except Exception:  # code that asks a meta tensor for a value: count a real forward
        tally = _run_for_real(model, tuple(args), dict(kwargs))
    params_of, parameter_bytes = _count_parameters(model)
    return Costs(
        macs=sum(tally.macs.values()),
        macs_of={name: tally.macs[name] for name, _ in model.named_modules() if tally.macs[name]},
        params=sum(params_of.values()),
        params_of=params_of,
        parameter_bytes=parameter_bytes,
        not_counted=tuple(
            f"{op} at {name or 'the root'}" + (f" ({times} times)" if times > 1 else "")
            for (op, name), times in tally.unknown.items()
        ),
        activation_bytes_of=dict(tally.activation_bytes),
        peak_activation_bytes=tally.live.peak,
    )


def describe(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor] | None = None
) -> ModelFacts:
    """Return the facts that `report.compare` puts side by side. Arguments as in `measure_costs`."""
    costs = measure_costs(model, args, kwargs)
    layers = tuple(
        LayerFacts(
            name,
            type(module).__name__,
            units,
            costs.params_of.get(name, 0),
            costs.macs_of.get(name, 0),
            costs.activation_bytes_of.get(name),
        )
        for name, module in model.named_modules()
        if name in costs.params_of or name in costs.macs_of
        for units in (count_units(module),)
    )
    return ModelFacts(layers, costs.parameter_bytes, costs.not_counted, costs.peak_activation_bytes)


def count_units(module: nn.Module) -> int | None:
    """Return how many units a layer puts out, or None where that is not one number."""
    for attribute in (
        "out_channels",
        "out_features",
        "num_features",
        "num_channels",
        "embedding_dim",
        "embed_dim",
    ):
        width = getattr(module, attribute, None)
        if isinstance(width, int) and not isinstance(width, bool):
            return width
    weight = module._parameters.get("weight")
    return weight.shape[0] if weight is not None and weight.dim() else None


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Switch off the fused attention that hides its matrix products."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Live:
    """How many bytes intermediate tensors hold: tensors of one storage count once, until all are gone."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.now = self.peak = 0
        self._users: Counter[int] = Counter()
        self._known = {_storage(tensor) for tensor in known}

    def see(self, made: Any) -> None:
        """Take note of what an operation returned."""
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                continue
            storage = _storage(tensor)
            if storage in self._known:
                continue
            size = tensor.untyped_storage().nbytes()
            self.now += 0 if self._users[storage] else size
            self.peak = max(self.peak, self.now)
            self._users[storage] += 1
            weakref.finalize(tensor, self._forget, storage, size).atexit = False

    def pass_over(self, parameter: Tensor) -> None:
        """Leave out a parameter that is in memory for a moment, and views of it."""
        storage = _storage(parameter)
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(parameter, self._known.discard, storage).atexit = False

    def _forget(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if not self._users[storage]:
            del self._users[storage]
            self.now -= size


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Runs on top of FlopCounterMode and books what each operation adds to the module that called it."""

    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounterMode, owners: Mapping[int, str], known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.counter = counter
        self.owners = owners
        self.running = [""]
        self.macs: Counter[str] = Counter()
        self.unknown: Counter[tuple[str, str]] = Counter()
        self.activation_bytes: Counter[str] = Counter()
        self.live = _Live(known)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        macs = (self.counter.get_total_flops() - before) // 2
        if isinstance(out, Tensor) and args and isinstance(args[0], OnDemand) and _is_view(func):
            self.live.pass_over(out)
        self.live.see(out)
        if macs:
            self.macs[self._payer(args)] += macs
        elif self._multiplies(func, args):
            self.unknown[str(func).removeprefix("aten.").removesuffix(".default"), self._payer(args)] += 1
        return out

    def _payer(self, args: tuple[Any, ...]) -> str:
        """Return the running module, or the child of it whose parameter is used without calling the child."""
        module = self.running[-1]
        owners = [owner for owner in map(self._owner, tree_leaves(args)) if owner is not None]
        inside = f"{module}." if module else ""
        return next((owner for owner in owners if owner.startswith(inside) and owner), module)

    def _owner(self, value: Any) -> str | None:
        if not isinstance(value, Tensor):
            return None
        return self.owners.get(id(value if value._base is None else value._base))

    def _multiplies(self, func: Any, args: tuple[Any, ...]) -> bool:
        if not isinstance(func, torch._ops.OpOverload):
            return True  # a higher-order operator: what runs inside is not seen
        name = func.overloadpacket.__name__
        if torch.Tag.pointwise in func.tags or _is_view(func) or "upsample" in name or name in _FREE:
            return False
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if any(tensor.numel() == 0 for tensor in tensors):
            return False
        return bool(_CONTRACTS.search(name)) or any(self._owner(tensor) is not None for tensor in tensors)


def _is_view(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func.is_view


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tally:
    """Run a copy once and count. The copy is used up: it gets hooks."""
    model.eval()
    counter = FlopCounterMode(display=False)
    owners = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    inputs = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    tally = _Tally(counter, owners, (*model.parameters(), *model.buffers(), *inputs))
    for name, module in model.named_modules():
        module.register_forward_pre_hook(partial(_enter, tally.running, name), prepend=True)
        module.register_forward_hook(partial(_leave, tally), always_call=True)
    with torch.no_grad(), without_fast_paths(), counter, tally:
        model(*args, **kwargs)
    return tally


def _run_for_real(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tally:
    try:
        with torch.random.fork_rng(devices=[]):
            return _run(copy.deepcopy(model).cpu(), *tree_map_only(Tensor, Tensor.cpu, (args, kwargs)))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise TraceError(f"The model does not run on one sample: {type(error).__name__}: {first}") from error


def _enter(running: list[str], name: str, module: nn.Module, args: Any) -> None:
    running.append(name)


def _leave(tally: _Tally, module: nn.Module, args: Any, output: Any) -> None:
    name = tally.running.pop()
    tally.activation_bytes[name] += sum(
        leaf.numel() * leaf.element_size() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)
    )


def _to_meta(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), values)


def _count_parameters(model: nn.Module) -> tuple[dict[str, int], int]:
    counts: dict[str, int] = {}
    size = 0
    for name, parameter in model.named_parameters():  # tied ones once
        owner = name.rpartition(".")[0]
        counts[owner] = counts.get(owner, 0) + parameter.numel()
        size += parameter.numel() * parameter.element_size()
    return counts, size
