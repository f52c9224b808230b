from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import ExportError, ProofError
from prunecli.export import to_onnx as module
from prunecli.export.to_onnx import Inputs, relative_error, to_onnx


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().flatten(1)


class Keyed(nn.Module):
    """Two inputs, one of them integers and by keyword; outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.embedding = nn.Embedding(10, 4)

    def forward(self, x: Tensor, *, ids: Tensor) -> dict[str, Tensor]:
        y = self.linear(x) + self.embedding(ids).mean(1)
        return {"logits": y, "energy": y.square().sum(1)}


class Starred(nn.Module):
    def forward(self, *x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x[0] + x[1], [x[1] * 2]


class OneByOne(nn.Module):
    """Looks at its batch size, so that a graph holds for one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.linear(row) for row in x])


class Eigen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, :, None] * x[:, None]).real


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Callable[[int], Inputs]:
    """Return inputs by position."""

    def inputs(batch: int) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(batch, *shape, generator=generator).to(dtype) for shape in shapes), {}

    return inputs


def keyed(batch: int) -> Inputs:
    return drawn((4,))(batch)[0], {"ids": torch.arange(3 * batch).reshape(batch, 3) % 10}


def names(values: object) -> list[str]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def test_the_batch_size_is_free_and_the_bytes_are_the_same_each_time() -> None:
    model = Conv().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = to_onnx(model, drawn((3, 8, 8)), lineage={"prunecli": "{}", "a": "b"})
    assert to_onnx(model, drawn((3, 8, 8)), lineage={"a": "b", "prunecli": "{}"}).content == first.content
    assert first.check.error < 1e-5
    assert (first.check.batches, first.check.dynamic_batch, first.check.notes) == ((1, 2, 3), True, ())
    proto = onnx.load_from_string(first.content)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"a": "b", "prunecli": "{}"}
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_of_the_machine_is_in_the_file() -> None:
    content = to_onnx(Conv(), drawn((3, 8, 8))).content
    assert b".py" not in content
    assert not any(
        node.metadata_props or node.doc_string for node in onnx.load_from_string(content).graph.node
    )


def test_the_exporter_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    to_onnx(Conv(), drawn((3, 8, 8)))
    assert capfd.readouterr() == ("", "")


def test_inputs_and_outputs_keep_their_names() -> None:
    proto = onnx.load_from_string(to_onnx(Keyed(), keyed).content)
    assert names(proto.graph.input) == ["x", "ids"]
    assert names(proto.graph.output) == ["logits", "energy"]
    starred = to_onnx(Starred(), drawn((4,), (4,)))
    proto = onnx.load_from_string(starred.content)
    assert starred.check.dynamic_batch
    assert names(proto.graph.input) == ["input_0", "input_1"]
    assert names(proto.graph.output) == ["output_0", "output_1"]


def test_a_batch_size_that_cannot_be_free_is_fixed_with_a_note() -> None:
    check = to_onnx(OneByOne(), drawn((4,))).check
    assert (check.batches, check.dynamic_batch) == ((1,), False)
    assert check.notes[0].startswith("The batch size is fixed at 1, since a free one does not export: ")


@pytest.mark.parametrize("dtype", (torch.float16, torch.float64, torch.bfloat16))
def test_other_dtypes_are_exported_in_float32(dtype: torch.dtype) -> None:
    model = Conv().to(dtype)
    exported = to_onnx(model, drawn((3, 8, 8), dtype=dtype))
    name = str(dtype).removeprefix("torch.")
    assert exported.check.notes == (f"The tensors are {name}; the ONNX file holds them in float32.",)
    assert model.conv.weight.dtype is dtype


def test_an_operation_without_onnx_is_named() -> None:
    with pytest.raises(ExportError, match="cannot export.*linalg_eig.*--no-onnx") as caught:
        to_onnx(Eigen(), drawn((4,)))
    assert len(str(caught.value)) < 320
    assert caught.value.exit_code == 5


def test_a_model_that_does_not_run_is_an_export_error() -> None:
    with pytest.raises(ExportError, match="shapes cannot be multiplied"):
        to_onnx(nn.Linear(5, 4), drawn((4,)))


def test_a_file_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ProofError, match="computes something else than PyTorch: relative error"):
        to_onnx(Noisy(), drawn((4,)))


def test_what_one_file_cannot_hold_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    with pytest.raises(ExportError, match="one ONNX file holds 2 GiB"):
        to_onnx(Conv(), drawn((3, 8, 8)))


def test_interruptions_pass_and_the_streams_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.onnx, "export", interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_onnx(Conv(), drawn((3, 8, 8)))


@pytest.mark.parametrize(
    ("wanted", "found", "error"),
    (
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([np.inf, 2.0], [np.inf, 1.0], 0.5),
        ([np.inf, 2.0], [0.0, 2.0], np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.nan, np.nan], [np.nan, np.nan], np.inf),
        ([0.0, 0.0], [0.0, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ),
)
def test_the_error_is_relative_to_the_largest_output(
    wanted: list[float], found: list[float], error: float
) -> None:
    assert relative_error(np.array(wanted), np.array(found)) == error
