"""nn.Module -> ONNX, with a free batch size, checked and run in onnxruntime against PyTorch.

Nothing is written here: the bytes are handed back; of large models as a stream, since the bytes alone would
double them.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli.costs import without_fast_paths
from prunecli.errors import ExportError, ProofError
from prunecli.export.onnx_weights import StreamedOnnx, without_weights
from prunecli.graph.borrowing import uncollected
from prunecli.graph.copying import copy_module
from prunecli.parity import is_large
from prunecli.report import OnnxCheck

Inputs: TypeAlias = tuple[tuple[Tensor, ...], dict[str, Tensor]]
"""Positional and keyword arguments of one forward."""

TOLERANCE = 1e-4
_MOST_BYTES = 2**31 - 2**20  # what one protobuf message may hold, with room for the graph
_ADVICE = "Leave the file out with `--no-onnx`."
_NOISY = ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class OnnxModel:
    """The content of an ONNX file, and how far onnxruntime is from PyTorch on it."""

    content: bytes | StreamedOnnx
    """The bytes; of a large model, a stream of them that reads the weights of the module."""
    check: OnnxCheck

    @property
    def whole(self) -> bytes:
        """The bytes, of any model."""
        return self.content if isinstance(self.content, bytes) else b"".join(self.content)


class _Unfit(Exception):
    """This way of exporting does not work; another one may."""


def to_onnx(
    model: nn.Module,
    inputs: Callable[[int], Inputs],
    *,
    lineage: Mapping[str, str] | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> OnnxModel:
    """Export the model as it runs in eval mode, on the CPU, in float32. Equal models give equal bytes.

    Args:
        model: Left as it is; a copy is exported.
        inputs: Batch size -> seeded inputs, as in `partial(example_inputs, spec)`.
        lineage: Where the model came from; becomes `metadata_props` of the file.
        opset: Version of the operator set; the exporter's own choice if None.
        tolerance: Largest error allowed, relative to the largest output.

    Raises:
        ExportError: when PyTorch cannot export it, or the file would exceed 2 GB.
        ProofError: when onnxruntime computes something else than PyTorch.
    """
    plain, notes = _plain_copy(model)
    lineage = dict(lineage or {})
    with torch.random.fork_rng(devices=[]), torch.no_grad(), without_fast_paths():
        try:
            return _attempt(plain, inputs, True, (2, 1, 3), opset, lineage, notes, tolerance)
        except (_Unfit, ProofError) as error:
            reason = str(error)
        notes = (*notes, f"The batch size is fixed at 1, since a free one does not export: {reason}")
        try:
            return _attempt(plain, inputs, False, (1,), opset, lineage, notes, tolerance)
        except _Unfit as error:
            raise ExportError(
                f"PyTorch cannot export this model to ONNX: {error} {_ADVICE}"
            ) from error.__cause__


def _attempt(
    model: nn.Module,
    inputs: Callable[[int], Inputs],
    dynamic: bool,
    batches: Sequence[int],
    opset: int | None,
    lineage: Mapping[str, str],
    notes: tuple[str, ...],
    tolerance: float,
) -> OnnxModel:
    """Export at the first batch size, then compare at each of them."""
    first = tree_map_only(Tensor, _plain, inputs(batches[0]))
    with _silenced():
        try:
            answer = model(*first[0], **first[1])
        except Exception as failure:  # whatever the model's own code raises
            raise _Unfit(_short(failure)) from failure
    streamed = _export(model, first, _output_names(answer), dynamic, opset)
    _clean(streamed.hollow, lineage)
    versions = [entry.version for entry in streamed.hollow.opset_import if entry.domain in ("", "ai.onnx")]
    content = streamed if is_large(model) else b"".join(streamed)
    _check(content)
    error = _largest_error(model, content, first, answer, [inputs(batch) for batch in batches[1:]])
    if not error <= tolerance:
        raise ProofError(
            f"The ONNX file computes something else than PyTorch: relative error {error:.1e}, "
            f"allowed {tolerance:.0e}. {_ADVICE}"
        )
    check = OnnxCheck(error, tuple(sorted(batches)), dynamic, versions[0] if versions else 0, notes)
    return OnnxModel(content, check)


def _plain_copy(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a float32 copy on the CPU, in eval mode, that takes no gradients.

    Parameters that are so already are lent to it: exporting changes none, but the forward may change buffers.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > _MOST_BYTES:
        raise ExportError(
            f"The tensors take {size / 2**30:.1f} GiB, but one ONNX file holds 2 GiB. {_ADVICE}"
        )
    kinds = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}

    def own(tensor: Tensor) -> Tensor:
        return _plain(tensor).clone()

    plain = copy_module(
        model, lambda _, tensor: _plain(tensor) if isinstance(tensor, nn.Parameter) else own(tensor), own
    )
    plain.eval().requires_grad_(False)
    if kinds <= {torch.float32}:
        return plain, ()
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}))
    return plain, (f"The tensors are {names}; the ONNX file holds them in float32.",)


def _plain(tensor: Tensor) -> Tensor:
    """Bring a tensor to the CPU, and to float32 where it holds real numbers."""
    return tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()


def _export(
    model: nn.Module, inputs: Inputs, outputs: list[str], dynamic: bool, opset: int | None
) -> StreamedOnnx:
    args, kwargs = inputs
    names = _input_names(model, args, kwargs)
    free = {name: {0: "batch"} for name in names}
    with _silenced(), uncollected():
        try:
            program = torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                input_names=names,
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=_as_signature(model, free, len(args)) if dynamic else None,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            streamed = without_weights(program.model)
        except Exception as error:  # whatever the exporter or its passes stumble over
            raise _Unfit(_short(error)) from error
    if dynamic and not all(_has_free_batch(value) for value in streamed.hollow.graph.input):
        raise _Unfit("the exporter fixed it.")
    return streamed


def _check(content: bytes | StreamedOnnx) -> None:
    """Check the very bytes that are written; of a stream, all but the weights."""
    try:
        checked = content if isinstance(content, bytes) else content.with_weights_as_inputs()
        onnx.checker.check_model(checked)
    except Exception as error:  # its exceptions share no base class with what reading may raise
        raise _Unfit(_short(error)) from error


def _input_names(model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> list[str]:
    """Name inputs as the forward does; `*inputs` are counted."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [
        item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    first = named[: len(args)] + [f"input_{i}" for i in range(len(named), len(args))]
    return [*first, *kwargs]


def _as_signature(model: nn.Module, free: Mapping[str, dict[int, str]], positional: int) -> Any:
    """Arrange what is free as `torch.export` wants it: by parameter, with `*inputs` as one tuple."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = list(free)
    taken = [
        item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
    ]
    shapes: dict[str, Any] = {name: free[name] for name in names if name in taken}
    starred = next((item.name for item in parameters if item.kind is item.VAR_POSITIONAL), None)
    keywords = next((item.name for item in parameters if item.kind is item.VAR_KEYWORD), None)
    only = {item.name for item in parameters if item.kind is item.KEYWORD_ONLY}
    if starred is not None:
        shapes[starred] = tuple(free[name] for name in names[len(taken) : positional])
    shapes |= {name: free[name] for name in names[positional:] if name in only}
    loose = {name: free[name] for name in names[positional:] if name not in taken and name not in only}
    return shapes | ({keywords: loose} if keywords is not None and loose else {})


def _output_names(output: Any) -> list[str]:
    """Name outputs by their keys, or count them."""
    if isinstance(output, Tensor):
        return ["output"]
    if isinstance(output, Mapping) and all(isinstance(value, Tensor) for value in output.values()):
        return [str(key) for key in output]
    return [f"output_{i}" for i, leaf in enumerate(tree_leaves(output)) if isinstance(leaf, Tensor)]


def _has_free_batch(value: onnx.ValueInfoProto) -> bool:
    dimensions = value.type.tensor_type.shape.dim
    return bool(dimensions) and bool(dimensions[0].dim_param)


def _clean(proto: onnx.ModelProto, lineage: Mapping[str, str]) -> None:
    """Take out traces of the machine (paths of source files), and put in where the model came from."""
    _strip(proto)
    for key in sorted(lineage):
        proto.metadata_props.add(key=key, value=lineage[key])


def _strip(message: Any) -> None:
    """Clear every comment in the message and in those inside it."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _strip(inner)


def _largest_error(
    model: nn.Module, content: bytes | StreamedOnnx, first: Inputs, answer: Any, samples: Sequence[Inputs]
) -> float:
    """Run both and return the largest error, relative to the largest output.

    Args:
        model: What was exported.
        content: Of the ONNX file.
        first: Inputs on which the model ran already.
        answer: What it made of them.
        samples: More inputs, on which both run.
    """
    try:
        with _session(content) as session:
            errors = [_error_on(model, session, first, answer)]
            for sample in samples:
                args, kwargs = plain = tree_map_only(Tensor, _plain, sample)
                errors.append(_error_on(model, session, plain, model(*args, **kwargs)))
        return max(errors)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise _Unfit(f"onnxruntime: {_short(error)}") from error


@contextlib.contextmanager
def _session(content: bytes | StreamedOnnx) -> Iterator[onnxruntime.InferenceSession]:
    """Load a file into onnxruntime; of a stream it copies the weights once, which nobody else does.

    Weights are then not laid out anew for its kernels, which would hold some of them twice more.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    weights: list[onnxruntime.OrtValue] = []  # alive until the session is not: it may point to them
    if isinstance(content, StreamedOnnx):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
        for values in content.weights.values():
            weights.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values)))
        options.add_external_initializers(list(content.weights), weights)
        content = content.with_weights_elsewhere()
    yield onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _error_on(model: nn.Module, session: onnxruntime.InferenceSession, inputs: Inputs, answer: Any) -> float:
    args, kwargs = inputs
    wanted = [leaf.numpy() for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
    fed = dict(zip(_input_names(model, args, kwargs), (*args, *kwargs.values()), strict=True))
    taken = {item.name for item in session.get_inputs()}
    found = session.run(None, {name: tensor.numpy() for name, tensor in fed.items() if name in taken})
    return max(relative_error(a, b) for a, b in zip(wanted, found, strict=True))


def relative_error(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the largest difference over the largest absolute value wanted.

    It is infinite where shapes or infinities differ, and where no value is finite: that proves nothing.
    """
    if wanted.shape != found.shape or not np.isfinite(wanted).any():
        return 0.0 if wanted.size == found.size == 0 else float("inf")
    same = (wanted == found) | ((wanted != wanted) & (found != found))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(wanted.astype(np.float64) - found.astype(np.float64))[~same].max()
        scale = np.abs(wanted[np.isfinite(wanted)].astype(np.float64)).max(initial=0.0)
    return float(difference / scale) if scale and np.isfinite(difference) else float("inf")


def _short(error: BaseException) -> str:
    """Return the cause in one line: the exporter wraps it in several, with advice and colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next(
        (line for line in lines if re.search(r"aten[.:]|operator|Unsupported", line)),
        lines[0] if lines else "",
    )
    line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return (line if len(line) <= 200 else f"{line[:197]}...").rstrip(".") + "."


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep the exporter's progress, warnings and logs to itself; exceptions still pass."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
