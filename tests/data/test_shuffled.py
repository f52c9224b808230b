"""Batches to train on: another order each epoch, the same again after a resume and with workers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prunecli.data import Augmentation, Batch, Samples, Shuffled, open_data, parse_augmentation
from prunecli.errors import DataError, UsageError
from prunecli.spec import InputSpec, ModelSpec
from tests.data.small_data import spec_of

COUNT = 23
AUGMENT = parse_augmentation("crop=1,flip,randaugment,erase=0.5")


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(COUNT))
    return open_data("npz:a.npz", spec_of(3, 8, 8, base=tmp_path))


def labels(batches: Sequence[Batch]) -> list[int]:
    return [int(label) for _, targets in batches for label in targets]


def assert_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    assert len(found) == len(expected)
    for ((inputs,), targets), ((others,), more) in zip(found, expected, strict=True):
        assert torch.equal(targets, more)
        assert torch.equal(inputs, others)  # type: ignore[arg-type]


def test_every_sample_comes_once_an_epoch(samples: Samples) -> None:
    shuffled = Shuffled(samples, 5, seed=0)
    found = list(shuffled.epoch(0))
    assert [len(targets) for _, targets in found] == [5, 5, 5, 5, 3]
    assert shuffled.batch_count == 5
    assert sorted(labels(found)) == list(range(COUNT))


def test_epochs_and_seeds_differ_and_repeat(samples: Samples) -> None:
    orders = [
        labels(list(Shuffled(samples, 5, seed).epoch(epoch))) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert labels(list(Shuffled(samples, 5, 0).epoch(1))) == orders[1]


def test_a_batch_is_that_of_its_samples(samples: Samples) -> None:
    for (inputs,), targets in Shuffled(samples, 5, seed=0).epoch(3):
        (expected,), _ = samples.batch(targets.tolist())
        assert torch.equal(inputs, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("augment", (None, AUGMENT), ids=("plain", "augmented"))
def test_a_resumed_epoch_goes_on_bit_for_bit(samples: Samples, augment: Augmentation | None) -> None:
    shuffled = Shuffled(samples, 5, seed=7, augment=augment)
    whole = list(shuffled.epoch(2))
    torch.rand(3)
    assert_same(list(shuffled.epoch(2, start=3)), whole[3:])
    assert list(shuffled.epoch(2, start=5)) == []


def test_workers_change_nothing(samples: Samples) -> None:
    alone = Shuffled(samples, 4, seed=7, augment=AUGMENT)
    assert_same(list(replace(alone, workers=2).epoch(1)), list(alone.epoch(1)))


def test_each_epoch_changes_a_picture_in_another_way(samples: Samples) -> None:
    def first(epoch: int) -> Tensor:
        shuffled = Shuffled(samples, COUNT, seed=0, augment=AUGMENT)
        ((inputs, targets),) = shuffled.epoch(epoch)
        return inputs[0][targets.argmin()]  # type: ignore[index]

    assert not torch.equal(first(0), first(1))


def test_random_generators_are_given_back(samples: Samples) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(Shuffled(samples, 5, seed=7, augment=AUGMENT).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


NOISY = """
import random
import numpy as np
import torch

class Noise:
    def __len__(self): return 6
    def __getitem__(self, i):
        return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))]), i
class Fails(Noise):
    def __getitem__(self, i): raise OSError("disk on fire")
"""


def noisy(folder: Path, name: str) -> Samples:
    (folder / "mine.py").write_text(NOISY)
    return open_data(f"mine.py:{name}", spec_of(3, base=folder))


def test_what_a_dataset_draws_by_itself_is_the_same_again(tmp_path: Path) -> None:
    shuffled = Shuffled(noisy(tmp_path, "Noise"), 2, seed=0)
    whole = list(shuffled.epoch(0))
    assert_same(list(shuffled.epoch(0, start=1)), whole[1:])
    assert_same(list(replace(shuffled, workers=2).epoch(0)), whole)
    assert len({float(value) for (inputs,), _ in whole for value in inputs.flatten()}) == 18  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", (0, 1))
def test_what_fails_is_told_in_one_line(tmp_path: Path, workers: int) -> None:
    shuffled = Shuffled(noisy(tmp_path, "Fails"), 2, seed=0, workers=workers)
    with pytest.raises(DataError, match=r"^`mine.py:Fails` failed at sample \d: OSError: disk on fire\.$"):
        list(shuffled.epoch(0))


@pytest.mark.parametrize(
    ("size", "batch_size", "sizes"),
    ((9, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (4, 4, [4])),
)
def test_a_last_sample_alone_is_left_out(
    samples: Samples, size: int, batch_size: int, sizes: list[int]
) -> None:
    shuffled = Shuffled(replace(samples, positions=range(size)), batch_size, seed=0)
    assert [len(targets) for _, targets in shuffled.epoch(0)] == sizes
    assert shuffled.batch_count == len(sizes)


def test_a_batch_is_mixed_the_same_way_again(samples: Samples) -> None:
    shuffled = Shuffled(samples, 5, seed=0, augment=parse_augmentation("mixup,cutmix"))
    batch = next(shuffled.epoch(0))
    torch.manual_seed(5)
    assert_same([shuffled.mix(batch, COUNT, 0, 2)], [shuffled.mix(batch, COUNT, 0, 2)])
    with pytest.raises(AssertionError):
        assert_same([shuffled.mix(batch, COUNT, 0, 2)], [shuffled.mix(batch, COUNT, 0, 3)])
    plain = replace(shuffled, augment=None)
    assert plain.mix(batch, COUNT, 0, 2) is batch


def test_what_cannot_be_shuffled_is_refused(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="A batch of 0 samples is empty"):
        Shuffled(samples, 0, seed=0)
    flat: Any = replace(samples, spec=ModelSpec("m.py:f", inputs=(InputSpec((192,)),)))
    with pytest.raises(
        UsageError, match=r"inputs of shape \[channels, height, width\]; the spec's are \[192\]"
    ):
        Shuffled(flat, 4, seed=0, augment=AUGMENT)
    Shuffled(flat, 4, seed=0, augment=parse_augmentation(""))
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UsageError, match="`--workers 2`: this system cannot fork"):
        Shuffled(samples, 4, seed=0, workers=2)
