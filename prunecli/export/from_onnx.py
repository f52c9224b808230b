"""An ONNX file, ours or anyone's -> what it says of itself, what it costs, and a module that runs it.

The file is untrusted: data outside it is never read, and onnxruntime runs it only when outputs are asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunecli.checkpoint.names import printable
from prunecli.errors import CheckpointError
from prunecli.export.onnx_facts import graph_facts, inner_graphs, inputs_of, unfolded
from prunecli.export.to_onnx import Inputs
from prunecli.report import ModelFacts
from prunecli.whole_file import read_whole

_MOST_BYTES = 2**31
_MOST_VALUES = 2**28
"""How many values one input may have; what a file asks for is made up and run."""
_MOST_OPERATORS = 100_000
"""How many operators the functions of a file may unfold into, which onnxruntime and onnx do."""
SECONDS_PER_SAMPLE = 60.0
"""How long a file may take when it is run for the first time."""
_PARENT = "prunecli.parent."
_DTYPES = {
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
    "tensor(uint8)": torch.uint8,
}
"""What inputs hold that are not float32."""


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A graph, and where it came from."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    bytes: int
    proto: onnx.ModelProto

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    @property
    def parents(self) -> dict[str, str]:
        """The files that it was made from: name -> digest."""
        return {
            key.removeprefix(_PARENT): value
            for key, value in self.metadata.items()
            if key.startswith(_PARENT)
        }


def is_onnx(path: str | Path) -> bool:
    """Whether a file may be ONNX: protocol buffers, of which the first field is a version."""
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            return False
        with Path(path).open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[:1] == b"\x08" and head[8:9] != b"{"  # a header of safetensors may begin so too


def read_onnx(path: str | Path) -> OnnxFile:
    """Read an ONNX file.

    Raises:
        CheckpointError: it cannot be read, is damaged, or larger than an ONNX file can be.
    """
    path = Path(path)
    try:
        content = read_whole(path, _MOST_BYTES)
        proto = onnx.load_from_string(content)
        if not _is_elsewhere(proto):
            onnx.checker.check_model(proto)
        _check_sizes(proto)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}.") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = printable(next(iter(str(error).strip().splitlines()), ""), 160).rstrip(".")
        raise CheckpointError(f"`{path}` is no valid ONNX file: {reason}. Export it again.") from None
    return OnnxFile(path, hashlib.sha256(content).hexdigest(), len(content), proto)


def _check_sizes(proto: onnx.ModelProto) -> None:
    """Refuse what the checker lets pass, and nobody can count or run.

    Raises:
        ValueError: An operator puts nothing out, a size is negative or beyond all memory, or functions call
            functions without end.
    """
    for graph in (proto.graph, *inner_graphs(proto.graph)):
        if any(not node.output for node in graph.node):
            raise ValueError("one of its operators puts nothing out")
        if any(size < 0 for item in graph.initializer for size in item.dims):
            raise ValueError("one of its constants has a negative size")
    if unfolded(proto, _MOST_OPERATORS) > _MOST_OPERATORS:
        raise ValueError(f"its functions unfold into more than {_MOST_OPERATORS:,} operators")
    for value in inputs_of(proto.graph):
        sizes = [each.dim_value for each in value.type.tensor_type.shape.dim if each.dim_value]
        if min(sizes, default=1) < 0 or math.prod(sizes) > _MOST_VALUES:
            raise ValueError(f"its input `{printable(value.name)}` is {printable(sizes)}")


def describe_onnx(file: OnnxFile, sample: Inputs | None = None) -> ModelFacts:
    """Count parameters and multiply-accumulates of one sample, layer by layer.

    Args:
        file: What to count.
        sample: One sample, where it is known: what the file leaves open is as large as that.
    """
    args, kwargs = sample or ((), {})
    names = [value.name for value in inputs_of(file.proto.graph)]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return graph_facts(file.proto, {name: tensor.shape for name, tensor in given.items()})


class OnnxModule(nn.Module):
    """Runs an ONNX file in onnxruntime on the CPU, as a module: tensors in, tensors out."""

    def __init__(self, content: bytes, threads: int | None = None) -> None:
        """Take the content of a file.

        Args:
            content: The whole file.
            threads: How many onnxruntime may use; as many as it likes if None.

        Raises:
            CheckpointError: Onnxruntime cannot run it, or would read other files that it names.
        """
        super().__init__()
        _refuse_other_files(content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.force_spinning_stop", "1")  # others may be next
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = next(iter(str(error).strip().splitlines()), "")[:160].rstrip(".")
            raise CheckpointError(f"onnxruntime cannot run the ONNX file: {reason}.") from None
        self.has_ended = False
        """Whether it came to an end once."""

    @property
    def batch_size(self) -> int | None:
        """How many samples it takes at a time; None where it takes any number."""
        shape = self.session.get_inputs()[0].shape
        return shape[0] if shape and isinstance(shape[0], int) else None

    def made_up(self, batch: int) -> dict[str, Tensor]:
        """Return seeded inputs by name, of any length 1 where the file leaves it open."""
        generator = torch.Generator().manual_seed(0)
        made = {}
        for item in self.session.get_inputs():
            sizes = [size if isinstance(size, int) else 1 for size in item.shape]
            shape = [self.batch_size or batch, *sizes[1:]] if sizes else []
            dtype = _DTYPES.get(item.type, torch.float32)
            made[item.name] = (
                torch.randn(shape, generator=generator).to(dtype)
                if dtype.is_floating_point
                else torch.zeros(shape, dtype=dtype)
            )
        return made

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return the output, or a tuple where there are several; in parts where the batch size is fixed."""
        names = [item.name for item in self.session.get_inputs()]
        values = dict(zip(names, args, strict=False)) | {
            name: kwargs[name] for name in names if name in kwargs
        }
        count = len(next(iter(values.values())))
        step = self.batch_size or count
        parts = [
            self._run({name: value[i : i + step] for name, value in values.items()}, step)
            for i in range(0, count, step)
        ]
        outputs = tuple(torch.cat(each)[:count] for each in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, values: Mapping[str, Tensor], step: int) -> list[Tensor]:
        fed = tree_map_only(Tensor, lambda tensor: _filled(tensor.cpu(), step).numpy(), dict(values))
        found = self.session.run(None, fed) if self.has_ended else self._run_watched(fed, step)
        self.has_ended = True
        return [torch.from_numpy(each) for each in found]

    def _run_watched(self, fed: Mapping[str, Any], step: int) -> list[Any]:
        """Run a file for the first time: one with a loop may never end, and onnxruntime hears no Ctrl-C.

        Raises:
            CheckpointError: it takes too long.
        """
        options, seconds = onnxruntime.RunOptions(), SECONDS_PER_SAMPLE * step
        options.log_severity_level = 4
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.session.run, None, fed, options)
            try:
                return list(running.result(seconds))
            except FutureTimeoutError:
                options.terminate = True
                raise CheckpointError(
                    f"onnxruntime takes more than {seconds:g} seconds to run the ONNX file once."
                ) from None
            except BaseException:
                options.terminate = True
                raise


def _filled(tensor: Tensor, count: int) -> Tensor:
    """Repeat the last sample until there are enough."""
    missing = count - len(tensor)
    return torch.cat([tensor, *[tensor[-1:]] * missing]) if missing else tensor


def _is_elsewhere(proto: onnx.ModelProto) -> bool:
    """Return whether tensors are kept in other files, wherever the graph holds them."""
    graphs = [proto.graph, *inner_graphs(proto.graph)]
    nodes = [node for holder in (*graphs, *proto.functions) for node in holder.node]
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        tensors += [attribute.t, *attribute.tensors]
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)


def _refuse_other_files(content: bytes) -> None:
    """Refuse what onnxruntime, in older versions, reads wherever the file says.

    Raises:
        CheckpointError: tensors are kept in other files.
    """
    try:
        proto = onnx.load_from_string(content)
    except DecodeError:
        return  # onnxruntime says what is wrong
    if _is_elsewhere(proto):
        raise CheckpointError(
            "The ONNX file keeps tensors in other files, which are not read to run it. "
            "Save it as one file: `onnx.save(onnx.load(path), path)`."
        )
