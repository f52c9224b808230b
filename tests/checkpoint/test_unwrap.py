"""Where in a checkpoint the parameters are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunecli.checkpoint.unwrap import WRAPPERS, find_state_dict
from prunecli.errors import CheckpointError

PATH = Path("a.pt")
STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.ones(2)}
OTHER = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("content", "wrapper"),
    (
        (STATE, None),
        ({"weight": torch.ones(2), "bias": torch.ones(1)}, None),
        (
            {
                **STATE,
                "_metadata": {"": {"version": 1}},
                "step": 3,
                "gone": None,
                "_extra_state": {"a": torch.ones(1)},
            },
            None,
        ),
        *(({name: STATE, "epoch": 3, "optimizer": OPTIMIZER}, name) for name in WRAPPERS),
        ({"state_dict": STATE, "best_prec1": 91.7}, "state_dict"),
        ({"state_dict": STATE, "rng_state": torch.ones(5, dtype=torch.uint8)}, "state_dict"),
        ({"my_net": STATE, "best": torch.tensor(0.9)}, "my_net"),
        (
            {
                "my_net": STATE,
                "optimizer_g": OPTIMIZER,
                "sgd": OPTIMIZER,
                "lr_scheduler": {"x": torch.ones(1)},
            },
            "my_net",
        ),
        ({"model": {"state_dict": STATE}}, "model.state_dict"),
        ({"app": {"model": STATE, "optim": OPTIMIZER}}, "app.model"),
        ({"model": STATE, "state_dict": STATE}, "state_dict"),
        ({"model": nn.Linear(2, 2), "loss_fn": {"weight": torch.ones(3)}}, "model"),
        (
            {
                "state_dict": STATE,
                "pytorch-lightning_version": "2.0",
                "callbacks": {"EMA": {"best": torch.ones(1)}},
                "loops": {"x": {"y": torch.ones(1)}},
                "hyper_parameters": {"mean": torch.ones(3)},
                "optimizer_states": [OPTIMIZER],
            },
            "state_dict",
        ),
    ),
)
def test_the_parameters_are_found(content: Any, wrapper: str | None) -> None:
    tensors, found = find_state_dict(PATH, content)
    assert found == wrapper
    assert tensors
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def test_what_is_no_tensor_is_left_out() -> None:
    tensors, _ = find_state_dict(PATH, {**STATE, "step": 3, "gone": None})
    assert tensors.keys() == STATE.keys()


def test_parameters_lose_their_graph() -> None:
    tensors, _ = find_state_dict(PATH, {"a.w": nn.Parameter(torch.ones(2))})
    assert not tensors["a.w"].requires_grad


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (
            {"state_dict": STATE, "state_dict_ema": OTHER},
            "several models: `state_dict`, `state_dict_ema`.*`--key state_dict`",
        ),
        ({"generator": STATE, "discriminator": OTHER}, "several models: `generator`, `discriminator`"),
        ({"model": {"student": STATE, "teacher": OTHER}}, "`model.student`, `model.teacher`"),
        ({"epoch": 3, "optimizer": OPTIMIZER}, "holds no parameters: its keys are `epoch`, `optimizer`"),
        ({}, "holds no parameters: it is an empty dict"),
        ({3: torch.ones(2)}, "holds no parameters"),
        ([torch.ones(2)], "holds a list, not a dict of tensors"),
        (torch.ones(2), "holds a Tensor, not a dict"),
        ({"\x1b]0;x": 3}, r"`\\x1b\]0;x`"),
    ),
)
def test_what_cannot_be_decided_is_asked(content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_state_dict(PATH, content)


@pytest.mark.parametrize(
    ("content", "key"),
    (
        ({"state_dict": OTHER, "ema": STATE}, "ema"),
        ({"runs": {"best": {"net": STATE}}}, "runs.best.net"),
        ({"a.b": {"c": STATE}}, "a.b.c"),
        (
            {"state_dict": {"model.conv.weight": STATE["conv.weight"], "loss.w": torch.ones(1)}},
            "state_dict.model",
        ),
        ({"model": nn.Conv2d(1, 1, 1)}, "model"),
    ),
)
def test_a_key_leads_inside(content: Any, key: str) -> None:
    tensors, wrapper = find_state_dict(PATH, content, key)
    assert wrapper == key
    assert any(name.endswith("weight") and not name.startswith("model") for name in tensors)


@pytest.mark.parametrize(
    ("key", "message"),
    (
        ("zzz", "no entry `zzz`: its keys are `state_dict`, `epoch`"),
        ("epoch", "the entry chosen is a int, not a dict of tensors"),
        ("epoch.x", "no entry `x`: it is a int"),
        ("state_dict.zzz", "no entry `zzz`: its keys are `conv.weight`"),
        ("inner", "is a dict, not a dict of tensors. Its keys are `a`"),
    ),
)
def test_a_wrong_key_is_an_error(key: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_state_dict(PATH, {"state_dict": STATE, "epoch": 3, "inner": {"a": 3}}, key)
