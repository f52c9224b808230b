"""Recovery as a part of `prune`: what it wins, what the report says, what does not go together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prunecli
from prunecli.data import SyntheticDataWarning
from prunecli.errors import DataError, UsageError
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.presets import PRESETS, with_preset
from prunecli.pipeline.prune import prune
from prunecli.pipeline.recovering import recovery_notices
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
from prunecli.report import Accuracy
from prunecli.report import Recovery as Recovered

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits_resnet"
CHECKPOINT = next(SAMPLE.glob("*.safetensors"), None) or next(SAMPLE.glob("*.pt"))


def pruned(tmp_path: Path, recovery: Recovery, **changes: object) -> prunecli.pipeline.prune.Pruned:
    given: dict[str, object] = {
        "importance": Importance(("taylor-fo",)),
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


class Hearing(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def heard(tmp_path: Path, samples: Samples) -> tuple[list[str], list[str]]:
    """Return what is told of a recovery, and what its report warns of."""
    choices = Choices(
        samples=samples,
        importance=Importance(("magnitude",)),
        budget=Budget(keep="0.5"),
        machine=Machine("cpu"),
        recovery=Recovery(reconstruct=True),
        files=Files(str(tmp_path), onnx=False),
    )
    listener = Hearing()
    report = prune(str(CHECKPOINT), choices, listener).report
    return listener.warnings, [notice.text for notice in report.warnings if notice.kind == "recovery"]


def test_few_samples_are_warned_about(tmp_path: Path) -> None:
    told, noted = heard(tmp_path, Samples(samples=16))
    assert "Recovery ran on 16 samples only" in noted[0]
    assert told == noted


def test_made_up_samples_are_warned_about(tmp_path: Path) -> None:
    with pytest.warns(SyntheticDataWarning):
        told, noted = heard(tmp_path, Samples(data="random:64"))
    assert "Recovery ran on made-up samples (`random:64`)" in noted[0]
    assert told == noted


def test_enough_samples_are_no_reason_to_warn(tmp_path: Path) -> None:
    assert heard(tmp_path, Samples(samples=256)) == ([], [])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    (
        (Accuracy(100, 1.0, 0.9), Accuracy(100, 2.0, 0.8), ["top1 fell from 90.00% to 80.00%"]),
        (Accuracy(100, 1.0, 0.9), Accuracy(100, 2.0, 0.9), []),
        (Accuracy(100, 1.0), Accuracy(100, 2.0), ["the loss rose from 1 to 2"]),
        (Accuracy(100, 1.0, 0.9), Accuracy(900, 1.0, 0.8), []),
        (Accuracy(100, 1.0, 0.95), Accuracy(900, 1.0, 0.99), ["top1 fell from 95.00% to 93.00%"]),
        (None, None, []),
    ),
)
def test_accuracy_lost_by_recovery_is_warned_about(
    before: Accuracy | None, after: Accuracy | None, expected: list[str]
) -> None:
    def measure(model: nn.Module, stage: str, most: int) -> Accuracy:
        return Accuracy(most, 1.0, 0.93)  # on as many samples as the plain cut was measured on

    told = Recovered("reconstruct", 512, "npz:a.npz", before)
    found = recovery_notices(told, nn.Identity(), after, measure)
    assert [notice.text for notice in found] == [
        f"Recovery made the model worse: {text} on 100 test samples." for text in expected
    ]


def test_a_comparison_of_checkpoints_names_the_recovery(tmp_path: Path) -> None:
    found = pruned(tmp_path, Recovery(recalibrate_bn=True))
    report = compare_checkpoints([str(CHECKPOINT), str(found.files[0])], machine=Machine("cpu"))
    assert report.settings["recovery"] == found.report.settings["recovery"] == "recalibrate-bn"


def test_samples_without_labels_are_enough(tmp_path: Path) -> None:
    with np.load(SAMPLE.parent / "digits.npz") as archive:
        np.savez(tmp_path / "bare.npz", images=archive["train_images"][:128])
    samples = Samples(data=f"npz:{tmp_path / 'bare.npz'}")
    found = pruned(tmp_path, Recovery(reconstruct=True), importance=Importance(("fisher",)), samples=samples)
    assert found.report.recovery is not None
    assert found.report.recovery.samples == 128
    with pytest.raises(DataError, match="The source has no labels"):
        pruned(tmp_path / "other", Recovery(), importance=Importance(("taylor-fo",)), samples=samples)


def test_a_preset_fills_in_what_was_left_alone() -> None:
    best = with_preset(Choices(budget=Budget(keep="0.5")), "best")
    assert (best.importance.method, best.budget.rank, best.budget.keep) == (
        ("fisher",),
        "score-per-cost",
        "0.5",
    )
    assert best.recovery.reconstruct
    own = with_preset(Choices(importance=Importance(("magnitude",))), "best")
    assert own.importance.method == ("magnitude",)
    with pytest.raises(UsageError, match="no preset `bset`. Did you mean `best`?"):
        with_preset(Choices(), "bset")


def test_what_was_given_stays_even_if_it_is_the_default() -> None:
    given = frozenset({"method", "rank", "reconstruct"})
    assert with_preset(Choices(given=given), "best", given) == Choices(given=given)


def test_statistics_are_measured_instead_of_layers_re_solved() -> None:
    best = with_preset(Choices(recovery=Recovery(recalibrate_bn=True)), "best")
    assert best.recovery == Recovery(recalibrate_bn=True)
    assert best.importance.method == ("fisher",)


def test_arguments_of_a_preset_are_replaced_one_by_one() -> None:
    own = Choices(importance=Importance(method_arg=("window=all", "ratio-bias=0")))
    found = with_preset(own, "rank-code").importance
    assert found.method_arg == ("average=1", "maximum=0", "activation=pre", "window=all", "ratio-bias=0")


def test_arguments_of_a_preset_are_for_its_method_only() -> None:
    def arguments(method: str) -> tuple[str, ...]:
        choices = Choices(importance=Importance((method,)))
        return with_preset(choices, "rank-code", frozenset({"method"})).importance.method_arg

    assert arguments("magnitude") == ()
    assert "average=1" in arguments("contribution")


def test_a_preset_fills_any_groups_of_settings() -> None:
    @dataclass(frozen=True)
    class Other:
        recovery: Recovery = Recovery()

    assert with_preset(Other(), "best").recovery.reconstruct


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "steps" not in preset])
def test_every_preset_without_training_runs(name: str, tmp_path: Path) -> None:
    checkpoint = SAMPLE.parent / "digits_mlp"
    path = next(checkpoint.glob("*.safetensors"), None) or next(checkpoint.glob("*.pt"))
    choices = Choices(
        samples=Samples(samples=64),
        importance=Importance(preset=name),
        budget=Budget(keep="0.6"),
        machine=Machine("cpu"),
        files=Files(str(tmp_path), onnx=False),
    )
    assert prune(str(path), choices).plan.method == PRESETS[name]["importance"]["method"][0]
