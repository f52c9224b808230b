"""Augmentations: what each does to a batch, and what it is refused for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prunecli.data import loss_function, open_data, parse_augmentation
from prunecli.data.augmentation import NAMES, Augmentation, Step
from prunecli.errors import DataError, UsageError
from tests.data.small_data import spec_of

CHANGES = [name for name in NAMES if name not in ("mixup", "cutmix")]
COLOUR = ("randaugment", "trivialaugment", "autoaugment", "augmix", "jitter")


def pictures(channels: int, dtype: torch.dtype = torch.uint8, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, channels, side, side), dtype=torch.uint8, generator=generator)
    return images if dtype is torch.uint8 else images.to(dtype) / 255


@pytest.mark.parametrize("dtype", (torch.uint8, torch.float32), ids=str)
@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_works_on_grey_and_coloured_pictures(
    name: str, channels: int, dtype: torch.dtype
) -> None:
    images = pictures(channels, dtype)
    before = images.clone()
    augment = parse_augmentation(name)
    for seed in range(5):  # the policies draw other operations
        torch.manual_seed(seed)
        found = augment(images)
        assert (found.shape, found.dtype) == (images.shape, images.dtype)
        assert 0 <= float(found.min()) <= float(found.max()) <= (255 if dtype is torch.uint8 else 1)
    assert torch.equal(images, before)
    torch.manual_seed(4)
    assert torch.equal(augment(images), found)
    assert not torch.equal(found, images)


@pytest.mark.parametrize("name", CHANGES)
def test_samples_are_changed_each_by_itself(name: str) -> None:
    images = pictures(3)[:1].expand(12, 3, 16, 16)
    torch.manual_seed(0)
    found = parse_augmentation(name)(images)
    assert len({tuple(image.flatten().tolist()) for image in found}) > 1


def test_a_crop_shifts_and_fills_with_zeros() -> None:
    images = torch.full((64, 1, 8, 8), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    by_eighth, by_two = (parse_augmentation(text)(images) for text in ("crop", "crop=2"))
    for found, padding in ((by_eighth, 1), (by_two, 2)):
        empty = (found == 0).flatten(1).sum(1)
        assert int(empty.min()) == 0
        assert int(empty.max()) == 64 - (8 - padding) ** 2
        assert set(found.flatten().tolist()) == {0, 255}


def test_a_flip_mirrors_half_of_the_pictures() -> None:
    images = pictures(3)[:1].expand(200, 3, 16, 16)
    torch.manual_seed(0)
    found = parse_augmentation("flip")(images)
    mirrored = [bool(torch.equal(image, images[0].flip(-1))) for image in found]
    assert all(was or torch.equal(image, images[0]) for was, image in zip(mirrored, found, strict=True))
    assert 70 < sum(mirrored) < 130


def test_changes_come_before_bytes_are_scaled_and_normalised(tmp_path: Path) -> None:
    images = pictures(3, side=8).numpy()
    np.savez(tmp_path / "a.npz", images=images.transpose(0, 2, 3, 1), labels=np.arange(12))
    samples = open_data("npz:a.npz", spec_of(3, 8, 8, base=tmp_path))
    seen: list[Tensor] = []

    def change(batch: Tensor) -> Tensor:
        seen.append(batch)
        return batch.flip(-1)

    (found,), _ = samples.batch([3, 1], change)
    assert torch.equal(seen[0], torch.from_numpy(images[[3, 1]]))
    assert torch.equal(found, torch.from_numpy(images[[3, 1]]).flip(-1) / 255)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("crp", "`--augment crp`: did you mean `crop`"),
        ("flip,,crop", "known here: crop, flip"),
        ("randaug", "did you mean `randaugment`"),
        ("zzzz", "known here: crop, flip, vflip, rotate"),
        ("flip=0.5", "`flip` takes no amount"),
        ("crop=x", "`--augment crop=x`: expected a whole number of at least 0"),
        ("crop=1.5", "expected a whole number"),
        ("crop=-1", "expected a whole number"),
        ("rotate=nan", "expected a number from 0 to 180"),
        ("erase=2", "expected a number from 0 to 1"),
        ("mixup=0", "expected a number from 0.01 to 100"),
    ),
)
def test_what_is_no_augmentation_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_augmentation(text)


def test_parts_act_in_the_order_they_are_written() -> None:
    found = parse_augmentation(" flip, crop=2 ,cutmix")
    assert found == Augmentation((Step("flip", None), Step("crop", 2)), (Step("cutmix", 1),))
    assert parse_augmentation("") == Augmentation()
    images = pictures(3)
    assert Augmentation()(images) is images


@pytest.mark.parametrize("name", COLOUR)
def test_changes_of_colours_need_colours(name: str) -> None:
    augment = parse_augmentation(f"flip,{name}")
    with pytest.raises(DataError, match=f"`--augment {name}` needs pictures of 1 or 3 channels, not 2"):
        augment(pictures(2))
    for wrong in (pictures(3, torch.float32) * 2 - 1, pictures(3, torch.float32) * 255, pictures(3).long()):
        with pytest.raises(DataError, match="in bytes or in floats from 0 to 1, not torch"):
            augment(wrong)


def test_other_changes_take_any_channels_and_values() -> None:
    augment = parse_augmentation("crop,flip,vflip,rotate,resizedcrop,erase")
    for images in (pictures(5), pictures(2, torch.float64) * 9 - 4):
        torch.manual_seed(0)
        assert augment(images).shape == images.shape


@pytest.mark.parametrize("text", ("mixup", "cutmix", "mixup,cutmix"))
def test_mixtures_give_shares_that_cross_entropy_takes(text: str) -> None:
    augment = parse_augmentation(text)
    images, labels = pictures(3, torch.float32), torch.arange(12) % 10
    torch.manual_seed(0)
    (mixed,), shares = augment.mix((images,), labels, 10)
    assert mixed.shape == images.shape  # type: ignore[union-attr]
    assert shares.shape == (12, 10)
    assert torch.allclose(shares.sum(1), torch.ones(12))
    assert ((shares > 0).sum(1) <= 2).all()
    logits = torch.rand(12, 10)
    assert loss_function(spec_of(3, 16, 16))(logits, shares) == functional.cross_entropy(logits, shares)
    assert augment(images) is images  # nothing is done to single samples
    by_name, _ = augment.mix({"x": images}, labels, 10)
    assert list(by_name) == ["x"]


def test_mixup_blends_neighbours_by_their_shares() -> None:
    images, labels = pictures(3, torch.float32), torch.arange(12)
    torch.manual_seed(0)
    (mixed,), shares = parse_augmentation("mixup=1").mix((images,), labels, 12)
    expected = torch.einsum("bk,kchw->bchw", shares, images)
    assert torch.allclose(mixed, expected, atol=1e-6)  # type: ignore[arg-type]


def test_batches_that_cannot_be_mixed_are_refused() -> None:
    augment = parse_augmentation("mixup,cutmix")
    images, labels = pictures(3, torch.float32), torch.arange(12)
    for inputs in ((images, images), (images.flatten(1),)):
        with pytest.raises(DataError, match="`--augment mixup and cutmix` mixes batches of pictures"):
            augment.mix(inputs, labels, 12)
    for targets in (torch.rand(12), labels[:, None], {"boxes": labels}, None):
        with pytest.raises(DataError, match="one class number per sample"):
            augment.mix((images,), targets, 12)
