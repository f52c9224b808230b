"""Which tensors a file may hold in fewer bits than the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunecli.errors import CheckpointError
from prunecli.export.precision import describe_precisions, narrowed
from prunecli.export.record import PrunedRecord
from prunecli.export.to_safetensors import load, to_bytes
from tests.export.small_nets import Pruned


def layer(weight: float, bias: float) -> nn.Linear:
    made = nn.Linear(2, 2)
    made.weight.data.fill_(weight)
    made.bias.data.fill_(bias)
    return made


@pytest.mark.parametrize(
    ("weight", "came_in", "fits"),
    (
        (0.5, torch.float16, True),
        (0.1, torch.float16, False),
        (70_000.0, torch.float16, False),
        (1e-30, torch.float16, False),
        (-0.0, torch.bfloat16, True),
        (0.5, torch.float64, False),
        (0.5, torch.int8, False),
    ),
)
def test_a_tensor_is_held_in_fewer_bits_if_no_value_is_lost(
    weight: float, came_in: torch.dtype, fits: bool
) -> None:
    assert narrowed(layer(weight, 0.1), {"weight": came_in}) == ({"weight": came_in} if fits else {})


def test_tied_tensors_are_found_under_each_name() -> None:
    model = nn.Sequential(layer(0.5, 0.1), layer(0.5, 0.1))
    model[1].weight = model[0].weight
    assert narrowed(model, {"1.weight": torch.bfloat16}) == {"0.weight": torch.bfloat16}


def test_precisions_are_told_the_most_used_first() -> None:
    model = layer(0.5, 0.1)
    assert describe_precisions(model, {}) is None
    assert describe_precisions(model, {"weight": torch.float16}) == "float16, float32"


def test_a_file_in_fewer_bits_gives_the_model_that_was_saved(net: Pruned, tmp_path: Path) -> None:
    net.model.conv.weight.data = net.model.conv.weight.data.bfloat16().float()
    content = to_bytes(net.model, net.record, {"conv.weight": torch.bfloat16})
    (tmp_path / "x.safetensors").write_bytes(content)
    assert load_file(tmp_path / "x.safetensors")["conv.weight"].dtype == torch.bfloat16
    assert torch.equal(load(tmp_path / "x.safetensors", net.spec)(net.inputs), net.model(net.inputs))


@pytest.mark.parametrize("name", ("conv.weight2", "tied.weight"))
def test_what_the_file_does_not_hold_cannot_be_widened(name: str, net: Pruned, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().clone() for key, tensor in net.model.state_dict().items()}
    tensors.pop("tied.weight")
    record = replace(net.record, aliases={"tied.weight": "up.weight"}, widened={name: "float64"})
    save_file(tensors, tmp_path / "x.safetensors", {"prunecli": record.to_json()})
    with pytest.raises(CheckpointError, match=f"`{name}` is no tensor of the file that can become float64"):
        load(tmp_path / "x.safetensors", net.spec)


def test_other_precisions_are_no_field_of_a_file(net: Pruned) -> None:
    text = replace(net.record, widened={"a": "float64"}).to_json().replace("float64", "int8")
    with pytest.raises(CheckpointError, match=r"widened\.a`: found 'int8', expected one of"):
        PrunedRecord.from_json(text, "x.safetensors")
