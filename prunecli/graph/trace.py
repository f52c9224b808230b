"""nn.Module + example input -> Trace: one forward pass, followed operation by operation.

The pass runs on the meta device, in eval mode, without gradients: no data, next to no memory. A
model whose code asks tensors for their values is run for real instead, under the same rules. Where
some parameters stay unused, the training path is followed as well (auxiliary heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

import prunecli.graph.rules  # noqa: F401  (fills the table of rules)
from prunecli.errors import TraceError
from prunecli.graph.borrowing import set_mode
from prunecli.graph.call import tensors_given
from prunecli.graph.calls import CallWatch
from prunecli.graph.constraints import UNIFORM, Constraints, Label, Labels, Reason
from prunecli.graph.copying import clean_copy, copy_to_meta, members, named_tensors, walk
from prunecli.graph.findings import Findings, Flow, Path, Watched, label_arrays
from prunecli.graph.kernels import MetaKernels
from prunecli.graph.outputs import tensors_in
from prunecli.graph.repeats import Repeats
from prunecli.graph.structure import CallKey, SiteKind
from prunecli.graph.tracer import OperationError, Tracer
from prunecli.graph.twins import find_rewritable, install

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


@dataclass
class Trace:
    """What one or two forward passes said about a model."""

    model: nn.Module
    """A copy ready to be traced, which has never run."""
    labels: dict[str, Labels]
    constraints: Constraints
    findings: Findings
    rewritten: dict[str, str]
    output_shapes: list[tuple[int, ...]]
    path: dict[str, Path]
    """What the code of each module did in eval mode."""
    kernels: MetaKernels
    """What operations returned on the meta device, for those who follow the model again."""
    blocks: Mapping[str, int]
    """Modules that have their like in the model, the outermost ones -> a number for their kind."""
    unsteady: set[str] = field(default_factory=set)
    """Modules that take another path when they run again, cut or not (caches)."""
    follows_training: bool = False
    """Whether the training path was followed too."""


def trace(model: nn.Module, args: Args, kwargs: Kwargs | None = None) -> Trace:
    """Follow the forward pass of `model`; the model itself is not touched.

    Args:
        model: any module.
        args: positional inputs, with a batch of one sample.
        kwargs: keyword inputs.

    Raises:
        TraceError: the forward pass fails for these inputs, on the meta device and for real.
    """
    kwargs = dict(kwargs or {})
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "A TorchScript module is a fixed program and cannot be cut. Build the model from its code."
        )
    rewritten = find_rewritable(model)
    try:
        return _trace_copy(lambda: prepare(copy_to_meta(model), rewritten), args, kwargs, rewritten)
    except Exception:  # whatever the model's own code raises on tensors without data
        try:
            return _trace_copy(lambda: prepare(clean_copy(model), rewritten), args, kwargs, rewritten)
        except TraceError:
            raise
        except Exception as error:
            where = f" in `{error.module}`" if isinstance(error, OperationError) and error.module else ""
            raise TraceError(
                f"The forward pass of `{type(model).__name__}` failed{where}: {_first_line(error)}. "
                f"It was given {_describe(args, kwargs)}; check the input in the spec."
            ) from error


def prepare(copy: nn.Module, rewritten: Mapping[str, str]) -> nn.Module:
    """Make a copy ready to be followed: twins installed, eval mode, no gradients."""
    install(copy, rewritten)
    modules = walk(copy)
    for parameter in members(copy, modules)[0].values():
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad and parameter.is_leaf:
            parameter.requires_grad_(False)
    set_mode(modules, training=False)
    return copy


def run(tracer: Tracer, model: nn.Module, args: Args, kwargs: Kwargs, *, sites: bool = False) -> Any:
    """Run a forward pass under `tracer`, with inputs moved to where the model is.

    Args:
        tracer: what follows the pass; it knows the tensors of `model`.
        model: any module.
        args: positional inputs.
        kwargs: keyword inputs.
        sites: note as well where units appear.
    """
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().to(tracer.device), (args, kwargs))
    tree_map_only(Tensor, tracer.tag_input, (args, kwargs))
    counting = _Watch(tracer) if sites else None
    watch, modules = counting or _Listener(tracer), walk(model)
    repeats = Repeats(tracer, modules, counting) if tracer.skips_repeats else nullcontext()
    with plain_kernels(), tracer.follow(modules), repeats, torch.no_grad(), watch, tracer:
        return model(*args, **kwargs)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch off the fused paths that hide operations, and restore them."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _trace_copy(
    copy: Callable[[], nn.Module],
    args: Args,
    kwargs: dict[str, Any],
    rewritten: dict[str, str],
    *,
    settled: bool = False,
) -> Trace:
    """Trace a copy that nobody else runs, so that what code caches on first use is seen being made."""
    runner = copy()
    constraints = Constraints()
    tensors, parameters = members(runner)
    labels = {name: _new_labels(constraints, tensor) for name, tensor in tensors.items()}
    tracer = Tracer(constraints, tensors, labels, parameters)
    tracer.kinds.of(runner)
    outputs = run(tracer, runner, args, kwargs, sites=True)
    if not settled and _shapes(named_tensors(runner)) != _shapes(tensors):
        grown = runner  # buffers got their size just now
        return _trace_copy(lambda: clean_copy(grown), args, kwargs, rewritten, settled=True)
    tracer.close(outputs)
    shapes = [tuple(output.shape) for output in tensors_in(outputs)]
    if not shapes:
        raise TraceError(
            f"`{type(runner).__name__}` returned no tensor but {type(outputs).__name__}: pruning keeps the "
            "outputs whole, and has to find them. Return tensors, or containers or dataclasses of them."
        )
    path = tracer.findings.path_so_far()
    needs_training = bool(parameters - tracer.findings.used.keys())
    is_as_new = tracer.device.type == "meta" and not tracer.kinds.has_changed(runner)
    result = Trace(
        runner if is_as_new and not needs_training else copy(),
        labels,
        constraints,
        tracer.findings,
        rewritten,
        shapes,
        path,
        tracer.kernels,
        tracer.blocks,
    )
    if needs_training:
        result.follows_training = _follow_training(tracer, runner, args, kwargs)
    for name in sorted(parameters - tracer.findings.used.keys()):
        for label in label_arrays(labels[name]):
            constraints.freeze(label, Reason("is not used in the forward pass"))
    return result


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def run_training(tracer: Tracer, model: nn.Module, args: Args, kwargs: Kwargs) -> None:
    """Follow the training path with two samples."""
    doubled = tree_map_only(Tensor, lambda tensor: torch.cat([tensor, tensor]), (args, kwargs))
    modules = walk(model)
    set_mode(modules, training=True)
    try:
        tracer.close(run(tracer, model, *doubled))
    finally:
        set_mode(modules, training=False)


def _follow_training(tracer: Tracer, model: nn.Module, args: Args, kwargs: Kwargs) -> bool:
    """Follow the training path too; return whether it reached parameters that were unused."""
    found = tracer.findings
    reached, costs, sites = len(found.used), len(found.contractions), len(found.watched)
    try:
        run_training(tracer, model, args, kwargs)
    except (RuntimeError, ValueError, NotImplementedError, TypeError, OperationError):
        return False  # a model that cannot train here is judged by its eval path alone
    finally:
        del found.contractions[costs:]
        del found.watched[sites:]
        del tracer.modules[1:]
    return len(found.used) > reached


def _new_labels(constraints: Constraints, tensor: Tensor) -> Labels:
    labels: list[Label] = [None if n == 1 else constraints.fresh(n) if n else UNIFORM for n in tensor.shape]
    return tuple(labels)


_TENSOR_MAKERS = frozenset({torch.tensor, torch.as_tensor, Tensor.new_tensor})
"""Calls that turn numbers into tensors, after which they can no longer be read on the meta device."""


_RECTIFIERS = frozenset({"relu", "relu_", "relu6", "hardtanh", "hardtanh_", "threshold", "threshold_"})
_SIZELESS = frozenset({torch.flatten, Tensor.flatten, F.linear})
"""Calls that are given no sizes, but made of operations that are."""

_READERS = frozenset({"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))})


class _Listener(TorchFunctionMode):
    """Sees the calls whose meaning is lost in the operations they become."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _TELLING:
            _note_meaning(self.tracer, func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)


_TELLING = frozenset({F.scaled_dot_product_attention, *_TENSOR_MAKERS})


def _note_meaning(tracer: Tracer, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
    if func is F.scaled_dot_product_attention and kwargs.get("scale") is None and len(args) < 7:
        tracer.freeze_scale(args[0] if args else kwargs["query"])
    if func in _TENSOR_MAKERS:
        tracer.note_numbers(args[1:] if isinstance(args[0], Tensor) else args)


class _Watch(CallWatch):
    """Listens like `_Listener`, and notes where units appear."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__(tracer.modules)
        self.tracer = tracer

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        if func in _TELLING:
            _note_meaning(self.tracer, func, args, kwargs)
        if key.function in _READERS:
            self._note_reading(key, args, kwargs)
        taken = [self._flow(tensor) for tensor in tensors_given(args, kwargs)]
        self.tracer.sizes_are_torchs = func in _SIZELESS
        result = func(*args, **kwargs)
        self.tracer.sizes_are_torchs = False
        if isinstance(result, Tensor):
            self._note_result(key, args, taken, result)
        return result

    def _flow(self, tensor: Tensor) -> Flow:
        return self.tracer.tag_of(tensor).flow

    def _note(
        self, key: CallKey, kind: SiteKind, operand: int | None, tensor: Tensor, tensors: Iterable[str]
    ) -> None:
        labels = self.tracer.tag_of(tensor).labels
        self.tracer.findings.watched.append(Watched(key, kind, operand, labels, tuple(sorted(tensors))))

    def _note_reading(self, key: CallKey, args: tuple[Any, ...], kwargs: Any) -> None:
        """Note the data that a layer contracts with its weight."""
        if len(args) < 2 or not self._flow(args[0]).from_data:
            return  # called in a way that no standard layer does
        self._note(key, SiteKind.READ, 0, args[0], self._flow(args[1]).parameters)

    def _note_result(
        self, key: CallKey, args: tuple[Any, ...], taken: Sequence[Flow], result: Tensor
    ) -> None:
        """Note units that were just made or rectified. A parameter that is added makes them as an operand."""
        flow = self._flow(result)
        if not flow.from_data:
            return
        if key.function in _RECTIFIERS:
            self._note(key, SiteKind.RECTIFIED, None, result, ())
        given = frozenset[str]().union(*(each.parameters for each in taken if not each.from_data))
        carried = frozenset[str]().union(*(each.open_sites for each in taken))
        made = flow.open_sites & given
        if not made:
            return
        if not carried & flow.open_sites - made:
            self._note(key, SiteKind.MADE, None, result, made)
            return
        for place, arg in enumerate(args):
            if isinstance(arg, Tensor) and not self._flow(arg).from_data:
                self._note(key, SiteKind.MADE, place, arg, self._flow(arg).parameters & made)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _describe(args: Args, kwargs: Kwargs) -> str:
    shapes = [str(list(a.shape)) if isinstance(a, Tensor) else repr(a) for a in args]
    shapes += [f"{k}={list(v.shape) if isinstance(v, Tensor) else v!r}" for k, v in kwargs.items()]
    return ", ".join(shapes) or "no input"
