"""Rows: what a layer reads at a place, times its weight, is what it puts out there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunecli.recovery.rows import (
    as_columns,
    as_weight,
    choose_places,
    geometry_of,
    inputs_at,
    map_shape,
    outputs_at,
)

LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "stride, padding and dilation that differ by dimension": (
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (3, 9, 8),
    ),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (nn.Conv2d(5, 5, 3, groups=5, stride=2), (5, 7, 7)),
    "1d": (nn.Conv1d(3, 4, 5, padding=2), (3, 11)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 4, 3, 3)),
    "linear": (nn.Linear(5, 4), (5,)),
    "linear over tokens": (nn.Linear(5, 4), (7, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("most", (10_000, 24))
def test_inputs_times_weight_are_outputs(name: str, most: int) -> None:
    layer, shape = LAYERS[name]
    layer, data = layer.double(), torch.randn(12, *shape, dtype=torch.float64)
    result = layer(data)
    if isinstance(layer, nn.Linear):
        geometry = geometry_of("linear", (data, layer.weight, layer.bias), {})
    else:
        args = (layer.stride, layer.padding, layer.dilation, layer.groups)
        geometry = geometry_of("conv", (data, layer.weight, layer.bias, *args), {})
    assert geometry is not None
    places = choose_places(12, map_shape(result, geometry), most, torch.Generator().manual_seed(0))
    inputs = inputs_at(data, geometry, map_shape(result, geometry), places)
    outputs = outputs_at(result, geometry, places)
    weight = as_columns(layer.weight, geometry)
    assert torch.equal(as_weight(weight, geometry, layer.weight), layer.weight)
    bias = layer.bias.reshape(geometry.groups, 1, -1)
    torch.testing.assert_close(inputs @ weight.mT + bias, outputs)
    assert inputs.shape[1] <= max(most, 12)


def test_padding_by_name_is_left_alone_unless_there_is_none() -> None:
    data, weight = torch.zeros(1, 2, 5, 5), torch.zeros(3, 2, 3, 3)
    assert geometry_of("conv2d", (data, weight, None, 1, "same"), {}) is None
    valid = geometry_of("conv2d", (data, weight, None), {"padding": "valid"})
    assert valid is not None
    assert (valid.stride, valid.padding, valid.groups) == ((1, 1), (0, 0), 1)


def test_places_are_all_or_chosen_without_repetition() -> None:
    generator = torch.Generator().manual_seed(1)
    assert choose_places(4, (3, 3), 100, generator)[0].tolist() == list(range(9))
    parts = choose_places(10, (8, 8), 160, generator)
    assert len(parts) == 8
    for part in parts:
        assert len(part) == len(set(part.tolist())) == 16
