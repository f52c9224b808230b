"""An ONNX file that comes a weight at a time is the one that protobuf writes, byte for byte."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import onnx
import onnx.helper
import pytest
import torch
from onnxscript import ir
from torch import Tensor, nn

from prunecli.errors import ProofError
from prunecli.export import to_onnx as module
from prunecli.export.onnx_weights import StreamedOnnx, bytes_of, without_weights
from prunecli.export.to_onnx import Inputs, to_onnx


class Net(nn.Module):
    """Two layers with weights that go along, a small one that stays in the graph, and one tied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3)
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
        self.second.weight = self.first.weight
        self.last = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().flatten(2).transpose(1, 2)  # three dimensions: weights are turned
        return self.last(self.second(self.first(x).relu()).mean(1))


def inputs(batch: int) -> Inputs:
    return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)),), {}


def test_a_large_model_gives_the_same_file_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Net()
    small = to_onnx(model, inputs, lineage={"a": "b"})
    monkeypatch.setattr(module, "is_large", lambda model: True)
    large = to_onnx(model, inputs, lineage={"a": "b"})
    assert isinstance(small.content, bytes)
    assert isinstance(large.content, StreamedOnnx)
    assert len(large.content.weights) >= 2
    assert large.whole == small.whole == b"".join(large.content)
    assert len(large.content) == len(small.content)
    assert large.content.sha256 == hashlib.sha256(small.content).hexdigest()
    assert large.check.batches == (1, 2, 3)
    assert large.check.error < 1e-5


def model_of(values: np.ndarray) -> onnx.ModelProto:
    """Return a model that has every kind of field around its weights."""
    small = onnx.numpy_helper.from_array(np.float32([1, 2]), "small")
    weight = onnx.numpy_helper.from_array(values, "weight")
    rows = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", values.shape[0]])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", values.shape[1]])
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", [rows], [out], [small, weight])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], producer_name="test", ir_version=10)
    model.metadata_props.add(key="after", value="the graph")
    return model


@pytest.mark.parametrize("shape", ((40, 40), (300, 300), (1, 70_000)))
def test_it_is_what_protobuf_writes(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    model = ir.serde.deserialize_model(model_of(values))
    proto = ir.serde.serialize_model(model)
    streamed = without_weights(model)
    assert list(streamed.weights) == ["weight"]
    assert len(streamed.with_weights_elsewhere()) < 1000
    assert b"".join(streamed) == proto.SerializeToString(deterministic=True)
    onnx.checker.check_model(streamed.with_weights_as_inputs())
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(streamed.hollow)


def test_turned_weights_are_written_in_their_own_order() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert bytes(bytes_of(values.T)) == np.ascontiguousarray(values.T).tobytes()
    assert bytes(bytes_of(values.astype(">f4"))) == values.tobytes()


def test_weights_that_are_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime runs are the weights of the stream, and not those of the model."""

    def spoilt(model: ir.Model) -> StreamedOnnx:
        streamed = without_weights(model)
        wrong = {name: values * np.float32(1.01) for name, values in streamed.weights.items()}
        return StreamedOnnx(streamed.hollow, wrong)

    monkeypatch.setattr(module, "is_large", lambda model: True)
    monkeypatch.setattr(module, "without_weights", spoilt)
    with pytest.raises(ProofError, match="computes something else than PyTorch"):
        to_onnx(Net(), partial(inputs))
