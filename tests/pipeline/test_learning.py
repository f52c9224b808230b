"""`prune --method i-spasp-train`: what it sets by itself, what it trains, and what takes its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.errors import UsageError
from prunecli.pipeline.learning import METHOD, with_learning
from prunecli.pipeline.prune import Pruned, prune
from prunecli.pipeline.score import score
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Decision,
    Files,
    Importance,
    Machine,
    Recovery,
    Samples,
)

SAMPLES = Path(__file__).parents[2] / "sample_models"


def checkpoint(name: str = "digits_mlp") -> Path:
    return next((SAMPLES / name).glob("model.safetensors"), None) or SAMPLES / name / "model.pt"


def pruned(folder: Path, name: str = "digits_mlp", *arguments: str, **changes: object) -> Pruned:
    choices = Choices(
        importance=Importance((METHOD,), arguments),
        budget=Budget(keep="0.5"),
        machine=Machine("cpu", threads=1),
        files=Files(str(folder), onnx=False),
    )
    return prune(str(checkpoint(name)), replace(choices, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ("digits_mlp", "digits_cnn"))
def test_the_selection_is_kept_and_the_layers_behind_it_are_trained(name: str, tmp_path: Path) -> None:
    found = pruned(tmp_path / "trained", name)
    plain = pruned(tmp_path / "original", name, "output=original")
    assert found.plan.keep == plain.plan.keep
    assert found.plan.scope.value == "layer"
    assert plain.report.recovery is None
    told = found.report.recovery
    assert told is not None
    assert (told.method, told.notes) == (METHOD, ())
    assert told.accuracy_before == plain.report.accuracy_after
    assert all(layer.error_after < layer.error_before for layer in told.layers)
    before, after = plain.report.accuracy_after, found.report.accuracy_after
    assert before is not None
    assert after is not None
    assert after.top1 > before.top1  # type: ignore[operator]
    loaded = prunecli.load(found.files[0], spec=checkpoint(name).with_suffix(".toml"))
    for entry, tensor in found.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[entry], tensor)


def test_another_budget_trains_what_its_plan_keeps(tmp_path: Path) -> None:
    found = pruned(tmp_path, budget=Budget(target="macs=0.6"))
    told = found.report.recovery
    assert told is not None
    assert told.layers
    assert "groups keep other units than `i-spasp-train` selects at their size" in told.notes[0]
    assert all(layer.error_after <= layer.error_before for layer in told.layers)


@pytest.mark.parametrize("name", ("reconstruct", "recalibrate_bn"))
def test_other_recovery_takes_its_place(name: str, tmp_path: Path) -> None:
    found = pruned(tmp_path, "digits_cnn", recovery=Recovery(**{name: True}))
    assert found.report.recovery is not None
    assert found.report.recovery.method == name.replace("_", "-")


def test_saved_scores_train_the_same(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    importance = Importance((METHOD,), ("keep=0.5",))
    score(str(checkpoint()), importance=importance, machine=Machine("cpu", threads=1), out=str(path))
    direct = pruned(tmp_path / "direct")
    later = pruned(
        tmp_path / "later",
        importance=Importance(),
        budget=Budget(keep="0.5", scope="layer"),
        decision=Decision(scores=str(path)),
    )
    for name, tensor in direct.model.state_dict().items():
        assert torch.equal(later.model.state_dict()[name], tensor)


def test_what_the_user_set_stays() -> None:
    asked = Choices(importance=Importance((METHOD,)), budget=Budget(keep="40%"))
    filled = with_learning(asked)
    assert (filled.budget.scope, filled.importance.method_arg) == ("layer", ("keep=0.4",))
    own = replace(
        asked, importance=Importance((METHOD,), ("keep=0.3", "inner=2")), given=frozenset({"scope"})
    )
    filled = with_learning(own)
    assert (filled.budget.scope, set(filled.importance.method_arg)) == ("global", {"keep=0.3", "inner=2"})
    other = replace(asked, importance=Importance(("magnitude",)))
    assert with_learning(other) == other
    by_macs = replace(asked, budget=Budget(target="macs=0.5"))
    assert with_learning(by_macs).importance.method_arg == ()


def test_a_start_from_the_dense_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`start=original` leads nowhere"):
        pruned(tmp_path, "digits_mlp", "start=original", samples=Samples(samples=64))
