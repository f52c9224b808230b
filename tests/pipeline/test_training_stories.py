"""`finetune`, `train` and `prune --steps` from Python: the whole recipe, what is written and reported."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import prunecli
from prunecli.errors import DataError, UsageError
from prunecli.pipeline.finetune import finetune, train_new
from prunecli.pipeline.presets import with_preset
from prunecli.pipeline.prune import prune
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Decision,
    Files,
    Importance,
    Machine,
    Recovery,
    Run,
    Samples,
    Source,
    Steps,
)
from prunecli.recipe import Recipe

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP, CNN = (SAMPLES / name / "model.pt" for name in ("digits_mlp", "digits_cnn"))
QUICK = Recipe(epochs=1)
RECIPES = {
    "augment": replace(QUICK, augment="crop=1,flip"),
    "mixtures": replace(QUICK, augment="mixup,cutmix"),
    "distill": replace(QUICK, distill=str(CNN), distill_weight=0.7, distill_temperature=2.0),
    "ema": replace(QUICK, ema=0.9),
    "label smoothing": replace(QUICK, label_smoothing=0.1),
    "channels last": replace(QUICK, channels_last=True),
    "adamw": replace(QUICK, optimizer="adamw", lr=1e-3),
    "adam, in steps": replace(QUICK, optimizer="adam", lr=1e-3, lr_schedule="step", lr_step=1),
    "one cycle": replace(QUICK, lr_schedule="onecycle", decay_all=True, nesterov=False),
    "warm-up": replace(QUICK, warmup=0.5, lr_schedule="constant"),
    "clip": replace(QUICK, clip=0.01),
}
NOT_IN_STEPS = {
    "accumulate": replace(QUICK, accumulate=2),
}


def quick(folder: Path, recipe: Recipe = QUICK, **changes: object) -> Choices:
    choices = Choices(
        samples=Samples(batch_size=256),
        machine=Machine("cpu", threads=1),
        files=Files(str(folder), onnx=False),
        recipe=recipe,
    )
    return replace(choices, **changes)  # type: ignore[arg-type]


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def is_same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = tensors_of(model), tensors_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def load(path: Path, source: Path) -> nn.Module:
    return prunecli.load(path, spec=source.with_name("model.toml"))


@pytest.mark.parametrize("recipe", (RECIPES | NOT_IN_STEPS).values(), ids=(RECIPES | NOT_IN_STEPS).keys())
def test_finetune_follows_every_part_of_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    found = finetune(str(CNN), quick(tmp_path, recipe))
    told = found.report.training
    assert told is not None
    assert len(told.rows) == 1
    assert told.rows[0].test_top1 > 0.9  # type: ignore[operator]
    plain = finetune(str(CNN), quick(tmp_path / "plain"))
    assert not is_same(found.model, plain.model)
    asked = {"epochs", "lr", *(name for name, value in vars(recipe).items() if value != vars(Recipe())[name])}
    assert set(told.recipe) == asked
    assert is_same(load(found.files[0], CNN), found.model)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_units_leave_in_steps_under_every_part_of_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    steps = Steps(steps=2, prune_every=2)
    found = prune(str(CNN), quick(tmp_path, recipe, steps=steps, budget=Budget(keep="0.6")))
    told = found.report.training
    assert told is not None
    assert told.figures["budget_met"] is True
    assert told.rows[-1].units == found.plan.kept_count
    assert [check.name for check in found.report.parity] == ["structure", "numbers"]
    assert is_same(load(found.files[0], CNN), found.model)


def test_bfloat16_trains_and_keeps_the_precision_of_the_file(tmp_path: Path) -> None:
    found = finetune(str(MLP), quick(tmp_path, machine=Machine("cpu", "bf16", threads=1)))
    plain = finetune(str(MLP), quick(tmp_path / "plain"))
    assert {tensor.dtype for tensor in found.model.parameters()} == {torch.float32}
    assert not is_same(found.model, plain.model)
    assert found.report.accuracy_after.top1 > 0.9  # type: ignore[union-attr, operator]


def test_workers_change_nothing(tmp_path: Path) -> None:
    recipe = RECIPES["augment"]
    one, two = (
        finetune(str(MLP), quick(tmp_path / str(each), replace(recipe, workers=each))) for each in (0, 1)
    )
    assert is_same(one.model, two.model)


def test_patience_stops_and_takes_the_best(tmp_path: Path) -> None:
    recipe = Recipe(epochs=6, lr=0.0, patience=2)  # nothing changes, so that the first epoch is the best
    found = finetune(str(MLP), quick(tmp_path, recipe))
    assert found.report.training is not None
    (phase,) = found.report.training.phases
    assert (phase.epochs, phase.notes) == (3, ("no better than epoch 1 for 2 epochs: stopped",))
    assert found.report.accuracy_after == found.report.accuracy_before


def test_the_best_or_the_last_epoch_is_taken(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, lr=1.0, lr_schedule="constant")  # which ruins the network
    last, best = (
        finetune(str(MLP), quick(tmp_path / take, recipe, run=Run(take=take)))  # type: ignore[arg-type]
        for take in ("last", "best")
    )
    rows = best.report.training.rows  # type: ignore[union-attr]
    assert best.report.accuracy_after.top1 == max(row.test_top1 for row in rows)  # type: ignore[union-attr]
    assert last.report.accuracy_after.top1 == rows[-1].test_top1  # type: ignore[union-attr]


def test_no_epochs_change_no_weights(tmp_path: Path) -> None:
    found = finetune(str(CNN), quick(tmp_path, Recipe(epochs=0)))
    before = prunecli.load_model(
        prunecli.read_spec(CNN.with_suffix(".toml")), prunecli.checkpoint.read_checkpoint(CNN)
    )
    assert is_same(found.model, before)
    assert found.report.training is not None
    assert found.report.training.rows == ()


def test_a_pruned_file_is_trained_with_the_spec_inside(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(CNN.parent, mine)
    shutil.copy(SAMPLES / "digits.npz", tmp_path)
    pruned = prune(str(mine / CNN.name), quick(tmp_path, budget=Budget(keep="0.5")))
    choices = quick(tmp_path, source=Source(trust_spec=True))
    found = finetune(str(pruned.files[0]), choices)
    assert [path.name for path in found.files] == [
        "model.pruned.finetuned.safetensors",
        "model.pruned.finetuned.json",
    ]
    before, after = pruned.report.accuracy_after, found.report.accuracy_after
    assert after.top1 > before.top1  # type: ignore[union-attr, operator]
    shapes = {name: tensor.shape for name, tensor in tensors_of(pruned.model).items()}
    assert {name: tensor.shape for name, tensor in tensors_of(found.model).items()} == shapes
    assert is_same(prunecli.load(found.files[0], trust_spec=True), found.model)
    again = prune(str(found.files[0]), replace(choices, budget=Budget(keep="0.9")))
    assert is_same(prunecli.load(again.files[0], trust_spec=True), again.model)


def test_a_new_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    spec = Source(str(MLP.with_name("model.toml")))
    first, again, other = (
        train_new(quick(tmp_path / name, source=spec, machine=Machine("cpu", threads=1, seed=seed)))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    for file, same in zip(first.files, again.files, strict=True):
        assert file.read_bytes() == same.read_bytes()
    assert not is_same(first.model, other.model)
    assert first.report.accuracy_before is None
    assert [path.name for path in first.files] == ["model.trained.safetensors", "model.trained.json"]


def test_training_data_must_be_named(tmp_path: Path) -> None:
    text = MLP.with_suffix(".toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("train = ")]
    spec = tmp_path / "net.toml"
    spec.write_text(
        "\n".join(lines).replace('"model.py', f'"{MLP.parent}/model.py').replace("..", str(SAMPLES))
    )
    with pytest.raises(
        DataError, match=r"`\[data\] train`. Add e.g. `--train-data npz:train.npz`\.$"
    ) as error:
        finetune(str(MLP), quick(tmp_path, source=Source(str(spec))))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"decision": Decision(dry_run=True)}, "`--dry-run` and `--steps`: what leaves shows only while"),
        (
            {"decision": Decision(apply="p.json"), "budget": Budget()},
            "`--apply` and `--steps`: what leaves is",
        ),
        ({"decision": Decision(scores="s.safetensors")}, "`--scores` and `--steps`: units are scored while"),
        (
            {"recovery": Recovery(reconstruct=True)},
            "`--reconstruct` and `--steps`: .* Say `--no-reconstruct`",
        ),
        ({"recovery": Recovery(recalibrate_bn=True)}, "`--recalibrate-bn` and `--steps`: training measures"),
        ({"recipe": NOT_IN_STEPS["accumulate"]}, "single minibatches: leave out `--accumulate`"),
        ({"importance": Importance(preset="best")}, "`--reconstruct` and `--steps`"),
        ({"steps": Steps(step_units="2%"), "recovery": Recovery(reconstruct=True)}, "and `--step-units`"),
        ({"steps": Steps(steps=9)}, "9 prunings, 270 minibatches.* Raise `--epochs`"),
    ),
)
def test_what_does_not_go_with_steps_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    choices = quick(tmp_path, budget=Budget(keep="0.5"), steps=Steps(steps=2))
    with pytest.raises(UsageError, match=message):
        prune(str(MLP), replace(choices, **changes))  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", ("cifar", "imagenet", "single", "lenet", "resnet18"))
def test_presets_of_step_by_step_pruning(name: str) -> None:
    filled = with_preset(Choices(), f"taylor-{name}")
    amounts = {"cifar": "2%", "imagenet": "100", "single": None, "lenet": "1", "resnet18": "100"}
    every = {"cifar": 10, "imagenet": 30, "single": 3000, "lenet": 50, "resnet18": 20}
    batch = {"cifar": 64, "imagenet": 256, "single": 256, "lenet": 100, "resnet18": 64}
    assert filled.steps.are_wanted
    assert (filled.steps.step_units, filled.steps.prune_every) == (amounts[name], every[name])
    assert filled.steps.tune == (name not in ("lenet", "resnet18"))
    assert (filled.samples.batch_size, filled.budget.rank) == (batch[name], "score")
    if name in ("imagenet", "single"):
        assert filled.recipe == Recipe(25, lr_schedule="step", lr_step=10, weight_decay=0.0)


def test_what_is_given_beside_a_preset_stays() -> None:
    own = Choices(steps=Steps(steps=7), recipe=Recipe(lr=0.1), samples=Samples(batch_size=32))
    filled = with_preset(own, "taylor-imagenet")
    assert filled.steps == Steps(steps=7, prune_every=30)
    assert (filled.recipe.lr, filled.recipe.epochs, filled.samples.batch_size) == (0.1, 25, 32)
    as_by_default = with_preset(Choices(), "taylor-imagenet", frozenset({"epochs", "batch_size"}))
    assert (as_by_default.recipe.epochs, as_by_default.samples.batch_size) == (10, 64)
