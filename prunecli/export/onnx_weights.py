"""An ONNX graph whose weights stay where they are -> the content of its file, one weight at a time.

The bytes are those that protobuf would write of the whole: fields in the order of their numbers. To have
protobuf do it takes three times the weights, and onnxruntime, given the bytes, three times more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import NDArray

from prunecli.export.streamed import Streamed

_FEW_BYTES = 1 << 12
"""A weight of fewer bytes stays in the graph."""
_ELSEWHERE = "weights"
_WITH_LENGTH = 2
"""How protobuf marks a field whose length stands before it."""
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, eq=False)
class StreamedOnnx(Streamed):
    """A whole ONNX file, as protobuf writes it."""

    hollow: onnx.ModelProto
    """The model; of the weights below it has names and shapes, and no bytes."""
    weights: Mapping[str, NDArray[Any]]
    """The values of initialisers by name, which may be those of a module."""

    def __len__(self) -> int:
        sizes = (part.nbytes if isinstance(part, np.ndarray) else len(part) for part in self._parts)
        return sum(sizes)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the graph as far as the first weight, then this, and so on."""
        for part in self._parts:
            yield bytes_of(part) if isinstance(part, np.ndarray) else part

    @cached_property
    def _parts(self) -> list[bytes | NDArray[Any]]:
        """The bytes in between, and the weights."""
        inner: list[bytes | NDArray[Any]] = []
        before, after = _around(self.hollow.graph, "initializer")
        for initializer in self.hollow.graph.initializer:
            if initializer.name in self.weights:
                values = self.weights[initializer.name]
                head, tail = _around(initializer, "raw_data")
                head += _key(initializer, "raw_data", values.nbytes)
                size = len(head) + values.nbytes + len(tail)
                inner += [_key(self.hollow.graph, "initializer", size) + head, values, tail]
            else:
                whole = _serialised(initializer)
                inner.append(_key(self.hollow.graph, "initializer", len(whole)) + whole)
        inner = [before, *inner, after]
        size = sum(part.nbytes if isinstance(part, np.ndarray) else len(part) for part in inner)
        before, after = _around(self.hollow, "graph")
        return [before, _key(self.hollow, "graph", size), *inner, after]

    def with_weights_elsewhere(self) -> bytes:
        """Return a model of which each weight is said to be outside: for onnxruntime, which is given them."""
        model = _copy(self.hollow)
        for initializer in model.graph.initializer:
            if initializer.name in self.weights:
                initializer.data_location = onnx.TensorProto.EXTERNAL
                initializer.external_data.add(key="location", value=_ELSEWHERE)
        return _serialised(model)

    def with_weights_as_inputs(self) -> bytes:
        """Return a model that is given the weights like data: for the checker, which misses their bytes."""
        model = _copy(self.hollow)
        del model.graph.initializer[:]
        for initializer in self.hollow.graph.initializer:
            if initializer.name in self.weights:
                shaped = onnx.helper.make_tensor_value_info(
                    initializer.name, initializer.data_type, initializer.dims
                )
                model.graph.input.append(shaped)
            else:
                model.graph.initializer.append(initializer)
        return _serialised(model)


def without_weights(model: Any) -> StreamedOnnx:
    """Take the weights out of a model.

    Args:
        model: of `onnxscript.ir`; its larger initialisers lose their values.
    """
    from onnxscript import ir  # slow to import

    weights: dict[str, NDArray[Any]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _FEW_BYTES:
            continue
        weights[name] = tensor.numpy()
        value.const_value = ir.ExternalTensor(
            _ELSEWHERE, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
        )
    hollow: onnx.ModelProto = ir.serde.serialize_model(model)
    for initializer in hollow.graph.initializer:
        if initializer.name in weights:
            initializer.ClearField("external_data")
            initializer.ClearField("data_location")
    return StreamedOnnx(hollow, weights)


def bytes_of(values: NDArray[Any]) -> memoryview:
    """Return the bytes as ONNX has them, little end first; a copy where they lie in another order."""
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def _around(message: _M, name: str) -> tuple[bytes, bytes]:
    """Return what stands before a field, and behind it, where the message is written."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    before, after = _copy(message), _copy(message)
    for field, _ in message.ListFields():
        for part, leaves in ((before, field.number >= number), (after, field.number <= number)):
            if leaves:
                part.ClearField(field.name)
    return _serialised(before), _serialised(after)


def _key(message: Message, name: str, size: int) -> bytes:
    """Return what stands before the bytes of a field: its number, and how many they are."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | _WITH_LENGTH) + _varint(size)


def _varint(number: int) -> bytes:
    """Write a number seven bits at a time, the lowest first.

    >>> list(_varint(300))
    [172, 2]
    """
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _copy(message: _M) -> _M:
    copied: _M = type(message)()
    copied.CopyFrom(message)
    return copied


def _serialised(message: Message) -> bytes:
    written: bytes = message.SerializeToString(deterministic=True)
    return written
