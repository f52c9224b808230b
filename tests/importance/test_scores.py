"""Scores survive their file, and nothing else passes for one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from prunecli.errors import CheckpointError
from prunecli.importance import About, Scores

ABOUT = About("toy", {"draws": 7}, 3, 20, 2, 16, "eval", ("Forward does not use `aux`.",))
SCORES = Scores(ABOUT, {"b": torch.tensor([0.5, -1.0]).double(), "a": torch.tensor([3.0]).double()})


def test_round_trip() -> None:
    read = Scores.from_bytes(SCORES.to_bytes())
    assert read.about == ABOUT
    assert {name: values.tolist() for name, values in read.by_group.items()} == {"b": [0.5, -1.0], "a": [3.0]}
    assert list(read.by_group) == ["b", "a"]
    assert read.to_bytes() == SCORES.to_bytes()


@pytest.mark.parametrize("content", (b"", b"no safetensors", save({"w": torch.ones(2)})))
def test_refuses_other_files(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="`x.safetensors` holds no scores"):
        Scores.from_bytes(content, "x.safetensors")


def edited(tensors: dict[str, torch.Tensor], **changes: object) -> bytes:
    about = {"version": 1, "groups": ["a"], "method": "toy", **changes}
    return save(tensors, {"prunecli.scores": json.dumps(about)})


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (edited({}, version=2), "its format version is 2, this prunecli reads 1"),
        (edited({"b": torch.ones(2).double()}), "its groups are not its tensors"),
        (edited({"a": torch.ones(2)}), "`a` is not one finite float64 number per unit"),
        (edited({"a": torch.full((2,), torch.nan).double()}), "`a` is not one finite"),
        (edited({"a": torch.ones(2).double()}, seed="x"), "`seed`: found 'x', expected an integer"),
        (edited({"a": torch.ones(2).double()})[:-4], "damaged"),
    ),
)
def test_refuses_damaged_scores(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Scores.from_bytes(content)
