"""ONNX files as they are read: counted like the model they came from, and run."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from prunecli.costs import describe
from prunecli.errors import CheckpointError
from prunecli.export.from_onnx import OnnxFile, OnnxModule, describe_onnx, is_onnx, read_onnx
from prunecli.export.onnx_facts import unfolded
from prunecli.export.to_onnx import to_onnx
from tests.hostile.forged import functions, loop


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, stride=2),
        nn.ConvTranspose2d(8, 4, 2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5),
    ).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def inputs(batch: int) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch)),), {}

    made = to_onnx(net(), partial(inputs), lineage={"prunecli.parent.net.pt": "ab" * 32})
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    path.write_bytes(made.content)
    return path


def test_params_and_macs_are_those_of_the_model(written: Path) -> None:
    found = describe_onnx(read_onnx(written))
    expected = describe(net(), [torch.zeros(1, 3, 8, 8)])
    assert found.params == expected.params
    assert found.macs == expected.macs
    assert found.parameter_bytes == expected.parameter_bytes
    assert found.not_counted == ()
    counts = {layer.name: (layer.units, layer.macs, layer.activation_bytes) for layer in expected.layers}
    assert {layer.name: (layer.units, layer.macs, layer.activation_bytes) for layer in found.layers} == counts


def test_it_runs_as_a_module_does(written: Path) -> None:
    batch = torch.randn(5, 3, 8, 8)
    found = OnnxModule(written.read_bytes(), threads=1)(batch)
    with torch.no_grad():
        torch.testing.assert_close(found, net()(batch), rtol=1e-4, atol=1e-5)


def test_its_lineage_is_read(written: Path) -> None:
    assert read_onnx(written).parents == {"net.pt": "ab" * 32}


def single(node: onnx.NodeProto, batch: int | str = 2) -> onnx.ModelProto:
    weight = helper.make_tensor("layer.weight", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_file_of_a_fixed_batch_size_takes_any_number_of_samples() -> None:
    module = OnnxModule(single(helper.make_node("MatMul", ["x", "layer.weight"], ["y"])).SerializeToString())
    assert module.batch_size == 2
    batch = torch.arange(20.0).reshape(5, 4)
    torch.testing.assert_close(module(batch), batch @ torch.full((4, 3), 0.5))
    assert {name: tuple(value.shape) for name, value in module.made_up(7).items()} == {"x": (2, 4)}


def test_what_cannot_be_counted_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["x", "layer.weight"], ["y"], equation="ij,jk->ik")
    path = tmp_path / "net.onnx"
    path.write_bytes(single(node).SerializeToString())
    found = describe_onnx(read_onnx(path))
    assert found.not_counted == ("Einsum",)
    assert (found.params, found.macs) == (12, 0)


def test_matrix_products_count_for_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(
        single(helper.make_node("MatMul", ["x", "layer.weight"], ["y"]), "n").SerializeToString()
    )
    found = describe_onnx(read_onnx(path))
    assert [(layer.name, layer.units, layer.macs) for layer in found.layers] == [("layer", 3, 12)]


def test_onnx_is_told_by_content(written: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = tmp_path / "net.onnx"
    save_file({f"w{i}": torch.zeros(1) for i in range(9)}, other)
    assert is_onnx(written)
    assert not is_onnx(other)
    assert not is_onnx(tmp_path)
    assert not is_onnx(tmp_path / "missing")


@pytest.mark.parametrize("content", (b"\x08\xff", b"\x08\x07garbage" * 9, b""))
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.onnx` is no valid ONNX file"):
        read_onnx(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: no such file"):
        read_onnx(tmp_path / "net.onnx")


def test_what_onnxruntime_cannot_run_is_refused() -> None:
    with pytest.raises(CheckpointError, match="onnxruntime cannot run the ONNX file"):
        OnnxModule(single(helper.make_node("NoSuchOperator", ["x"], ["y"])).SerializeToString())


def test_data_outside_the_file_is_not_read(tmp_path: Path) -> None:
    proto = single(helper.make_node("MatMul", ["x", "layer.weight"], ["y"]))
    (weight,) = proto.graph.initializer
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../etc/passwd")
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    assert describe_onnx(read_onnx(path)).params == 12
    with pytest.raises(CheckpointError, match="keeps tensors in other files, which are not read to run it"):
        OnnxModule(path.read_bytes())


def test_data_of_a_constant_outside_the_file_is_not_read() -> None:
    outside = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../secret")
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=outside)
    proto = single(constant)
    with pytest.raises(CheckpointError, match="keeps tensors in other files"):
        OnnxModule(proto.SerializeToString())


def conv_file(
    tmp_path: Path,
    size: tuple[int | str, ...] = ("n", 3, 8, 8),
    *before: onnx.NodeProto,
    tail: tuple[onnx.NodeProto, ...] = (),
    initial: tuple[onnx.TensorProto, ...] | None = None,
    listed: bool = False,
) -> OnnxFile:
    """A convolution of 16 units of 3x3, padded: 27,648 MACs on 8x8."""
    weight = numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.float32), "conv.weight")
    node = helper.make_node("Conv", ["x", "conv.weight"], ["y"], pads=[1, 1, 1, 1])
    kept = (weight,) if initial is None else initial
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)]
    if listed:
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in kept]
    last = tail[-1].output[0] if tail else "y"
    made = helper.make_tensor_value_info(
        last, TensorProto.FLOAT, ["a", "b"] if tail else ["a", "b", "c", "d"]
    )
    graph = helper.make_graph([*before, node, *tail], "g", inputs, [made], kept)
    opset = helper.make_opsetid("", 9 if listed else 18)
    path = tmp_path / "net.onnx"
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=3 if listed else 8)
    path.write_bytes(proto.SerializeToString())
    return read_onnx(path)


def test_parameters_that_old_files_list_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    found = describe_onnx(conv_file(tmp_path, listed=True))
    assert [(one.name, one.units, one.params, one.macs) for one in found.layers] == [("conv", 16, 432, 27648)]


def test_a_fixed_batch_counts_for_one_sample(tmp_path: Path) -> None:
    tail = (
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
        helper.make_node("Gemm", ["z", "fc.weight"], ["o"], transB=1),
    )
    initial = (
        numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.float32), "conv.weight"),
        numpy_helper.from_array(np.array([5, -1]), "shape"),
        numpy_helper.from_array(np.zeros((10, 1024), np.float32), "fc.weight"),
    )
    found = describe_onnx(conv_file(tmp_path, (5, 3, 8, 8), tail=tail, initial=initial))
    assert [(one.macs, one.activation_bytes) for one in found.layers] == [(27648, 4096), (10240, 40)]
    assert found.not_counted == ()


def test_sizes_that_a_file_leaves_open_are_those_of_the_sample_or_not_known(tmp_path: Path) -> None:
    file = conv_file(tmp_path, ("n", 3, "height", "width"))
    assert describe_onnx(file).not_counted == ("Conv",)
    assert describe_onnx(file, ((torch.zeros(1, 3, 8, 8),), {})).macs == 27648


def test_a_constant_is_a_parameter(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.float32))
    node = helper.make_node("Constant", [], ["conv.weight"], value=weight)
    found = describe_onnx(conv_file(tmp_path, ("n", 3, 8, 8), node, initial=()))
    assert [(one.name, one.params, one.macs) for one in found.layers] == [("conv", 432, 27648)]


def test_quantised_weights_are_those_of_their_layer(tmp_path: Path) -> None:
    initial = (
        numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.int8), "quantised"),
        numpy_helper.from_array(np.ones(16, np.float32), "scale"),
        numpy_helper.from_array(np.zeros(16, np.int8), "zero"),
    )
    node = helper.make_node("DequantizeLinear", ["quantised", "scale", "zero"], ["conv.weight"], axis=0)
    found = describe_onnx(conv_file(tmp_path, ("n", 3, 8, 8), node, initial=initial))
    assert [(one.name, one.kind, one.params, one.macs) for one in found.layers] == [
        ("conv", "Conv", 432, 27648)
    ]
    assert found.parameter_bytes == 432


def test_a_branch_that_multiplies_is_named_and_its_parameters_count(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 3), np.float32), "fc.weight")
    product = helper.make_node("MatMul", ["x", "fc.weight"], ["inside"])
    body = helper.make_graph(
        [product], "b", [], [helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["n", 3])], [weight]
    )
    proto = single(helper.make_node("If", ["which"], ["y"], then_branch=body, else_branch=body), "n")
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    del proto.graph.initializer[:]
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    found = describe_onnx(read_onnx(path))
    assert (found.params, found.not_counted) == (12, ("If",))


def test_operators_of_others_are_named(tmp_path: Path) -> None:
    node = helper.make_node("FusedMatMul", ["x", "layer.weight"], ["y"], domain="com.microsoft")
    proto = single(node, "n")
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    assert describe_onnx(read_onnx(path)).not_counted == ("FusedMatMul",)


def test_linear_layers_on_sequences_keep_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    def inputs(batch: int) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        return (torch.randn(batch, 5, 4, generator=torch.Generator().manual_seed(batch)),), {}

    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(model, inputs).content)
    found = [
        (one.name, one.units, one.params, one.macs, one.activation_bytes)
        for one in describe_onnx(read_onnx(path)).layers
    ]
    expected = describe(model, *inputs(1)).layers
    assert found == [(one.name, one.units, one.params, one.macs, one.activation_bytes) for one in expected]


def test_a_file_of_fixed_sizes_is_believed_where_shapes_cannot_be_worked_out(tmp_path: Path) -> None:
    unknown = helper.make_node("Unknown", ["x"], ["between"], domain="others")
    product = helper.make_node("MatMul", ["between", "layer.weight"], ["y"])
    proto = single(product, 1)
    proto.graph.node.insert(0, unknown)
    proto.opset_import.append(helper.make_opsetid("others", 1))
    proto.graph.value_info.append(helper.make_tensor_value_info("between", TensorProto.FLOAT, [1, 4]))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    assert describe_onnx(read_onnx(path)).macs == 12


def test_a_file_that_does_not_come_to_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    module = OnnxModule(loop(), threads=1)
    monkeypatch.setattr("prunecli.export.from_onnx.SECONDS_PER_SAMPLE", 0.2)
    with pytest.raises(CheckpointError, match="takes more than 0.2 seconds to run the ONNX file once"):
        module(torch.ones(1, 4))


def test_a_file_that_does_not_come_to_an_end_is_interrupted() -> None:
    module = OnnxModule(loop(), threads=1)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            module(torch.ones(1, 4))
    finally:
        signal.signal(signal.SIGINT, before)
        timer.join()


def test_functions_are_unfolded(tmp_path: Path) -> None:
    doubled = onnx.load_from_string(functions(5, lambda number: [number + 1] * 2))
    assert unfolded(doubled, 100) == 16
    assert unfolded(doubled, 3) == 4
    path = tmp_path / "net.onnx"
    path.write_bytes(doubled.SerializeToString())
    read_onnx(path)
    with pytest.raises(ValueError, match="its functions call themselves"):
        unfolded(onnx.load_from_string(functions(1, lambda _: [0])), 100)
