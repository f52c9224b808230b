"""Checkpoint + model: what fits, what is put right, and what is refused with advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.checkpoint import Checkpoint, Format, load_into, load_model, read_checkpoint
from prunecli.errors import CheckpointError
from prunecli.model import build_model
from prunecli.spec import read_spec


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, classes)


def checkpoint(tensors: dict[str, Tensor], wrapper: str | None = None) -> Checkpoint:
    return Checkpoint(tensors, Format.TORCH, wrapper, {}, Path("a.pt"), "", 0)


def state(seed: int = 1, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        name: torch.rand_like(value.float()).to(value.dtype)
        for name, value in Net(**options).state_dict().items()
    }


def assert_loaded(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in expected.items())


@pytest.mark.parametrize(
    "prefix",
    (
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "module.model.",
        "module.module.",
        "_orig_mod.module.a.b.",
    ),
)
def test_a_prefix_of_all_names_is_cut(prefix: str) -> None:
    model, expected = Net(), state()
    report = load_into(model, checkpoint({f"{prefix}{name}": value for name, value in expected.items()}))
    assert (report.prefix, report.matched) == (prefix, len(expected))
    assert_loaded(model, expected)


def test_a_prefix_that_the_model_has_stays() -> None:
    model = nn.Sequential()
    model.module = Net()
    expected = {f"module.{name}": value for name, value in state().items()}
    assert load_into(model, checkpoint(expected)).prefix == ""
    assert_loaded(model, expected)


def test_names_of_compiled_and_sharded_parts_are_put_right() -> None:
    model, expected = Net(), state()
    renamed = {
        name.replace("body.", "body._orig_mod.").replace("head.", "_fsdp_wrapped_module.head."): value
        for name, value in expected.items()
    }
    load_into(model, checkpoint({f"module.{name}": value for name, value in renamed.items()}))
    assert_loaded(model, expected)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_other_precisions_are_converted_and_told(dtype: torch.dtype) -> None:
    model = Net()
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in state().items()
    }
    report = load_into(model, checkpoint(tensors))
    assert report.cast == (f"{str(dtype).removeprefix('torch.')} -> float32",)
    assert "converted" in report.describe()
    assert model.head.weight.dtype is torch.float32


def test_batch_counters_may_be_absent() -> None:
    model, expected = Net(), state()
    del expected["body.1.num_batches_tracked"]
    report = load_into(model, checkpoint(expected))
    assert report.absent_counters == 1
    assert "1 batch counters are absent" in report.describe()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight


def test_tied_parameters_may_be_stored_once_or_twice_but_not_differ() -> None:
    weight = torch.rand(5, 4)
    for names in (["embed.weight"], ["out.weight"], ["embed.weight", "out.weight"]):
        model = Tied()
        report = load_into(model, checkpoint({name: weight.clone() for name in names}))
        assert report.fits
        assert torch.equal(model.embed.weight, weight)
        assert model.out.weight is model.embed.weight
    with pytest.raises(
        CheckpointError, match="`embed.weight` and `out.weight` differ, but the model ties them"
    ):
        load_into(Tied(), checkpoint({"embed.weight": weight, "out.weight": weight + 1}))


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: dict[str, int]) -> None: ...


def test_extra_state_and_lazy_layers_are_no_hindrance() -> None:
    assert load_into(Extra(2, 3), checkpoint(dict(nn.Linear(2, 3).state_dict()))).fits
    lazy = nn.LazyLinear(3)
    assert load_into(lazy, checkpoint(dict(nn.Linear(2, 3).state_dict()))).fits
    assert lazy.weight.shape == (3, 2)


def test_the_old_names_of_weight_norm_are_read_by_the_model() -> None:
    source = nn.Linear(2, 3)
    old = {
        "weight_g": source.weight.norm(dim=1, keepdim=True),
        "weight_v": source.weight,
        "bias": source.bias,
    }
    model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    load_into(model, checkpoint({name: value.detach() for name, value in old.items()}))
    assert torch.allclose(model.weight, source.weight)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    (
        ("head.weight", float("nan"), r"`head.weight` holds 12 values that are not finite"),
        ("head.bias", float("inf"), r"`head.bias` holds 3 values"),
        ("body.1.running_var", float("inf"), r"`body.1.running_var` holds 4 values"),
    ),
)
def test_values_that_are_not_finite_are_refused(name: str, value: float, message: str) -> None:
    tensors = state()
    tensors[name].fill_(value)
    with pytest.raises(CheckpointError, match=message):
        load_into(Net(), checkpoint(tensors))


def test_a_value_in_the_last_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.checkpoint.match._AT_ONCE", 4)
    tensors = state()
    tensors["head.weight"][-1, -1] = float("nan")
    with pytest.raises(CheckpointError, match="`head.weight` holds a value that is not finite"):
        load_into(Net(), checkpoint(tensors))


def test_masks_may_be_infinite() -> None:
    model = nn.Linear(2, 3)
    model.register_buffer("mask", torch.zeros(2))
    tensors = {**model.state_dict(), "mask": torch.full((2,), float("-inf"))}
    assert load_into(model, checkpoint(tensors)).fits


def test_integers_are_no_parameters() -> None:
    with pytest.raises(CheckpointError, match="`head.weight` is int8, but the model's is float32. Quantised"):
        load_into(Net(), checkpoint({**state(), "head.weight": torch.ones(3, 4, dtype=torch.int8)}))


def test_what_does_not_fit_is_listed_and_counted() -> None:
    tensors = {name: value for name, value in state().items() if not name.startswith("body.1")}
    tensors |= {f"x{i}.weight": torch.ones(1) for i in range(9)}
    tensors["body.0.weight"] = torch.ones(7, 2)
    with pytest.raises(CheckpointError) as caught:
        load_into(Net(), checkpoint(tensors))
    message = str(caught.value)
    assert "`a.pt` does not fit the spec (3 of 9 tensors match)" in message
    assert "1 shapes differ: `body.0.weight` is [7, 2], the spec builds [4, 2]" in message
    assert "4 missing: `body.1.weight`" in message
    assert "9 unexpected: `x0.weight`, `x1.weight`, `x2.weight`, `x3.weight` and 5 more" in message
    assert len(message.splitlines()) == 2


def test_another_number_of_classes_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`--spec-arg num_classes=5`"):
        load_into(Net(), checkpoint(state(classes=5)))
    spec = read_spec("torchvision:squeezenet1_1", spec_args=["num_classes=7"])
    tensors = build_model(read_spec("torchvision:squeezenet1_1", spec_args=["num_classes=4"])).state_dict()
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="`--spec-arg num_classes=4`"):
        load_model(spec, read_checkpoint(tmp_path / "a.pt"))


def test_a_loss_beside_the_model_is_recognised() -> None:
    tensors = {
        **{f"model.{name}": value for name, value in state().items()},
        "criterion.weight": torch.ones(3),
    }
    with pytest.raises(
        CheckpointError, match=r"whole model is there under `model.`: pass `--key state_dict.model`"
    ):
        load_into(Net(), checkpoint(tensors, "state_dict"))


def test_absent_auxiliary_heads_are_recognised() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "aux1": nn.Linear(2, 2)})
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("aux")}
    with pytest.raises(CheckpointError, match="`--spec-arg aux_logits=false`"):
        load_into(model, checkpoint(tensors))


def test_what_a_hook_of_the_model_raises_is_passed_on() -> None:
    model = Net()

    def hook(*_: object) -> None:
        raise ValueError("version 1 is too old")

    model.register_load_state_dict_pre_hook(hook)
    with pytest.raises(CheckpointError, match="cannot be loaded: version 1 is too old"):
        load_into(model, checkpoint(state()))


def test_a_model_is_built_and_loaded(tmp_path: Path) -> None:
    spec = read_spec("torch.nn:Linear", spec_args=["in_features=2", "out_features=3"], input=["2"])
    expected = nn.Linear(2, 3).state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in expected.items()}}, tmp_path / "a.pt"
    )
    model = load_model(spec, read_checkpoint(tmp_path / "a.pt"))
    assert not model.training
    assert_loaded(model, expected)


def test_a_path_will_do_for_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "a.pt")
    spec = read_spec("torch.nn:Linear", spec_args={"in_features": 3, "out_features": 2}, input=["3"])
    for path in (tmp_path / "a.pt", str(tmp_path / "a.pt")):
        assert load_model(spec, path)(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]
