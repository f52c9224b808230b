"""Recovery as a part of `prune`: what it wins, what the report says, what does not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.errors import DataError, UsageError
from prunecli.pipeline.presets import PRESETS, with_preset
from prunecli.pipeline.prune import prune
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Files,
    Importance,
    Machine,
    Recovery,
    Samples,
    Source,
)

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits_resnet"
CHECKPOINT = next(SAMPLE.glob("*.safetensors"), None) or next(SAMPLE.glob("*.pt"))


def pruned(tmp_path: Path, recovery: Recovery, **changes: object) -> prunecli.pipeline.prune.Pruned:
    given: dict[str, object] = {
        "importance": Importance(("magnitude",)),
        "budget": Budget(target="macs=0.4"),
        "machine": Machine("cpu"),
        "files": Files(str(tmp_path), onnx=False),
        **changes,
    }
    return prune(str(CHECKPOINT), Choices(recovery=recovery, **given))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> prunecli.pipeline.prune.Pruned:
    return pruned(tmp_path_factory.mktemp("plain"), Recovery())


@pytest.mark.parametrize("name", ("reconstruct", "recalibrate_bn"))
def test_accuracy_comes_back_and_the_report_says_how(
    name: str, tmp_path: Path, plain: prunecli.pipeline.prune.Pruned
) -> None:
    found = pruned(tmp_path, Recovery(**{name: True}))
    before, after = plain.report.accuracy_after, found.report.accuracy_after
    assert before is not None
    assert after is not None
    assert after.loss < before.loss  # type: ignore[operator]
    told = found.report.recovery
    assert told is not None
    assert told.method == name.replace("_", "-")
    assert told.accuracy_before == before
    assert bool(told.layers) == (name == "reconstruct")
    assert bool(told.norms) == (name == "recalibrate_bn")
    assert all(layer.error_after < layer.error_before for layer in told.layers)
    assert [check.name for check in found.report.parity] == ["structure", "numbers"]  # of the cut itself
    read = json.loads(found.files[1].read_text())
    assert read["recovery"]["samples"] == told.samples
    loaded = prunecli.load(found.files[0], spec=next(SAMPLE.glob("*.toml")))
    for name_, tensor in found.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name_], tensor)


def test_the_two_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--recalibrate-bn` and `--reconstruct` do not go together"):
        pruned(tmp_path, Recovery(recalibrate_bn=True, reconstruct=True))


def test_it_needs_samples(tmp_path: Path) -> None:
    spec = tmp_path / "bare.toml"
    text = next(SAMPLE.glob("*.toml")).read_text().replace('factory = "', f'factory = "{SAMPLE}/')
    text = text.replace("npz:../", f"npz:{SAMPLE.parent}/")
    spec.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("sample", "train"))))
    with pytest.raises(DataError, match="`--reconstruct` looks at samples, and the spec names none"):
        pruned(tmp_path, Recovery(reconstruct=True), source=Source(spec=str(spec)))


def test_less_memory_means_fewer_samples(tmp_path: Path) -> None:
    found = pruned(tmp_path, Recovery(reconstruct=True), machine=Machine("cpu", max_memory="1MB"))
    assert found.report.recovery is not None
    assert 2 <= found.report.recovery.samples < 100


def test_a_preset_fills_in_what_was_left_alone() -> None:
    best = with_preset(Choices(importance=Importance(preset="best"), budget=Budget(keep="0.5")))
    assert (best.importance.method, best.budget.rank, best.budget.keep) == (
        ("fisher",),
        "score-per-cost",
        "0.5",
    )
    assert best.recovery.reconstruct
    own = with_preset(Choices(importance=Importance(("magnitude",), preset="best")))
    assert own.importance.method == ("magnitude",)
    with pytest.raises(UsageError, match="no preset `bset`. Did you mean `best`?"):
        with_preset(Choices(importance=Importance(preset="bset")))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name: str, tmp_path: Path) -> None:
    checkpoint = SAMPLE.parent / "digits_mlp"
    path = next(checkpoint.glob("*.safetensors"), None) or next(checkpoint.glob("*.pt"))
    choices = Choices(
        samples=Samples(samples=64),
        importance=Importance(preset=name),
        budget=Budget(keep="0.6"),
        machine=Machine("cpu"),
        files=Files(str(tmp_path), onnx=False),
    )
    assert prune(str(path), choices).plan.method == PRESETS[name].importance["method"][0]
