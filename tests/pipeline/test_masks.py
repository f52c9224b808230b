"""Masked files on their way: trained on, cut, re-solved, exported; what is zero for good stays zero."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import prunecli
from prunecli.errors import CheckpointError, UsageError
from prunecli.export.to_loader import write_loader
from prunecli.graph.cutting import slice_masks
from prunecli.pipeline.finetune import finetune, train_new
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.opening import Opened, open_model
from prunecli.pipeline.prune import prune
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Directed,
    Files,
    Importance,
    Machine,
    Recovery,
    Run,
    Samples,
    Source,
    Steps,
    Weights,
)
from prunecli.recipe import Recipe

SAMPLES = Path(__file__).parents[2] / "sample_models"
CNN = SAMPLES / "digits_cnn" / "model.pt"
SPEC = Source(spec=str(CNN.with_suffix(".toml")))
BY_MAGNITUDE = Importance(method=("magnitude",), granularity="weight")


def quick(folder: Path, **changes: object) -> Choices:
    choices = Choices(
        source=SPEC,
        samples=Samples(batch_size=256),
        machine=Machine("cpu", threads=1),
        files=Files(str(folder), onnx=False),
        recipe=Recipe(epochs=1),
    )
    return replace(choices, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a masked file of the sample model: one weight of four stays."""
    folder = tmp_path_factory.mktemp("masked")
    choices = quick(folder, importance=BY_MAGNITUDE, budget=Budget(ratio="4"))
    return prune(str(CNN), replace(choices, files=Files(str(folder)))).files[0]


def opened(path: Path) -> Opened:
    return open_model(str(path), SPEC, Samples(), Silent())


def masks_of(path: Path) -> dict[str, Tensor]:
    """Return the masks of a file, whose tensors must keep to them."""
    found = opened(path)
    assert found.masks is not None
    assert_zero(found.model, found.masks)
    return dict(found.masks)


def assert_zero(model: nn.Module, masks: object) -> None:
    assert isinstance(masks, dict)
    assert masks
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any(), name
        assert (~mask).any() or mask.all()


def assert_same_masks(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


def test_load_gives_the_masked_dense_model(masked: Path) -> None:
    masks = masks_of(masked)
    dense = opened(CNN).model
    model = prunecli.load(masked, spec=CNN.with_suffix(".toml"))
    assert_zero(model, masks)
    for name, tensor in dense.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor * masks.get(name, torch.tensor(1)))
    assert opened(CNN).masks is None


RECIPES = {
    "sgd": Recipe(epochs=1),
    "adamw, everything": Recipe(
        epochs=2,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        decay_all=True,
        ema=0.9,
        clip=0.1,
        accumulate=2,
    ),
    "channels last": Recipe(epochs=1, channels_last=True, nesterov=True),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_finetuning_keeps_the_masks(recipe: Recipe, masked: Path, tmp_path: Path) -> None:
    found = finetune(str(masked), quick(tmp_path, recipe=recipe))
    assert_same_masks(masks_of(found.files[0]), masks_of(masked))
    assert_same_masks(masks_of(next(tmp_path.glob("**/last.safetensors"))), masks_of(masked))
    assert found.report.accuracy_after.top1 > 0.9  # type: ignore[union-attr, operator]
    before = opened(masked).model.state_dict()
    assert not all(torch.equal(each, before[name]) for name, each in found.model.state_dict().items())
    again = finetune(str(found.files[0]), quick(tmp_path / "again"))
    assert_same_masks(masks_of(again.files[0]), masks_of(masked))


def test_bfloat16_keeps_the_masks(masked: Path, tmp_path: Path) -> None:
    found = finetune(str(masked), quick(tmp_path, machine=Machine("cpu", "bf16", threads=1)))
    assert_same_masks(masks_of(found.files[0]), masks_of(masked))


def test_units_leave_with_their_masks(masked: Path, tmp_path: Path) -> None:
    found = prune(str(masked), quick(tmp_path, budget=Budget(keep="0.5")))
    assert found.plan is not None
    expected = slice_masks(masks_of(masked), opened(masked).structure, found.plan.kept())
    assert_same_masks(masks_of(found.files[0]), expected)


def test_units_leave_in_steps_with_their_masks(masked: Path, tmp_path: Path) -> None:
    steps = Steps(steps=2, prune_every=2)
    found = prune(str(masked), quick(tmp_path, budget=Budget(keep="0.6"), steps=steps))
    assert found.plan is not None
    expected = slice_masks(masks_of(masked), opened(masked).structure, found.plan.kept())
    assert_same_masks(masks_of(found.files[0]), expected)


def test_masks_that_were_solved_away_are_named(masked: Path, tmp_path: Path) -> None:
    recovery = Recovery(reconstruct=True)
    choices = quick(tmp_path, budget=Budget(keep="0.5"), recovery=recovery)
    found = prune(str(masked), replace(choices, samples=Samples(samples=256, batch_size=256)))
    (notice,) = (each for each in found.report.warnings if each.kind == "masks")
    assert "are no longer zero; the file keeps no mask of them" in notice.text
    left = masks_of(found.files[0])
    assert 0 < len(left) < len(masks_of(masked))


def test_a_schedule_that_masks_says_so_in_its_file(tmp_path: Path) -> None:
    arguments = ("rounds=1", "percent=50")
    choices = quick(tmp_path, directed=Directed(schedule="imp", schedule_arg=arguments))
    found = train_new(choices)
    masks = masks_of(found.files[0])
    kept = sum(int(mask.sum()) for mask in masks.values())
    size = sum(mask.numel() for mask in masks.values())
    assert kept == round(size / 2)


def test_a_run_goes_on_only_with_the_same_masks(tmp_path: Path) -> None:
    def start(ratio: str, resume: bool) -> Choices:
        choices = quick(tmp_path, importance=BY_MAGNITUDE, budget=Budget(ratio=ratio))
        return replace(choices, run=Run(resume=resume), files=Files(str(tmp_path), onnx=False, force=resume))

    train_new(start("4", resume=False))
    train_new(start("4", resume=True))
    with pytest.raises(UsageError, match="was started with another choice of masked weights"):
        train_new(start("8", resume=True))


def test_onnx_has_the_same_zeros(masked: Path) -> None:
    proto = onnx.load(masked.with_suffix(".onnx"))
    held = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    for name, mask in masks_of(masked).items():
        weight = opened(masked).model.get_parameter(name).detach().numpy()
        assert (~mask).any()
        if name in held and held[name].shape == weight.shape:
            assert np.array_equal(held[name] == 0, weight == 0), name  # a normalisation may be folded in
        else:  # turned
            same = [each for each in held.values() if each.size == weight.size]
            assert int((weight == 0).sum()) in [int((each == 0).sum()) for each in same], name


def test_a_stand_alone_loader_gives_the_same_model(masked: Path, tmp_path: Path) -> None:
    found = opened(masked)
    assert found.record is not None
    (tmp_path / "load_pruned.py").write_text(write_loader(found.record, None, str(masked)))
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from load_pruned import load; "
        "from model import digits_cnn; torch.save(load(factory=digits_cnn).state_dict(), 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", program, str(CNN.parent)], cwd=tmp_path, check=True)
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(torch.equal(loaded[name], each) for name, each in found.model.state_dict().items())


def test_a_mask_that_does_not_fit_is_refused_by_the_name_of_the_file(masked: Path) -> None:
    found = opened(masked)
    assert found.record is not None
    name, record = next(iter(found.record.masks.items()))
    broken = replace(found.record, masks={name: replace(record, size=3)})
    with pytest.raises(CheckpointError, match=f"`{masked.name}`: metadata field `masks.{name}`"):
        _ = replace(found, record=broken).masks


def test_what_was_masked_before_stays_masked_though_it_is_spared_now(tmp_path: Path) -> None:
    budget, weights = Budget(ratio="2"), Weights(prune_classifier=True)
    before = prune(str(CNN), quick(tmp_path, importance=BY_MAGNITUDE, budget=budget, weights=weights))
    again = quick(tmp_path / "again", importance=BY_MAGNITUDE, budget=Budget(ratio="4"))
    found, old = masks_of(prune(str(before.files[0]), again).files[0]), masks_of(before.files[0])
    assert found.keys() == old.keys()
    assert all(not (mask & ~old[name]).any() for name, mask in found.items())
    spared = [name for name, mask in found.items() if torch.equal(mask, old[name])]
    assert len(spared) == 1


def test_patterns_go_through_the_story(tmp_path: Path) -> None:
    choices = quick(tmp_path, importance=BY_MAGNITUDE, weights=Weights(pattern="2:4"))
    found = prune(str(CNN), choices)
    masks = masks_of(found.files[0])
    assert any(mask.float().mean() == 0.5 for mask in masks.values())
