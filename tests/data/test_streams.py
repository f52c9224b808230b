"""Datasets that give one sample after another, and samples by the million: nothing of them is kept."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

import prunecli
from prunecli.data import Samples, Shuffled, batches, choose_samples, evaluate, open_data, sample_digest
from prunecli.data.batches import MOST_LISTED
from prunecli.data.sources import InTurn
from prunecli.errors import DataError
from prunecli.importance import score
from prunecli.peers import Peers
from tests.data.small_data import spec_of

CODE = """
import torch
from torch.utils.data import IterableDataset

class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.full((3,), float(i)), i % 5) for i in range(100))

class Long(Stream):
    def __len__(self):
        return 120

class Unsure(Stream):
    def __len__(self):
        raise TypeError("it depends")

class Negative(Stream):
    def __len__(self):
        return -3

class Parted(Stream):
    def __iter__(self):
        about = torch.utils.data.get_worker_info()
        first, every = (about.id, about.num_workers) if about else (0, 1)
        return ((torch.full((3,), float(i)), i % 5) for i in range(first, 100, every))

class Shuffling(Stream):
    def __iter__(self):
        return ((torch.full((3,), float(i)), i % 5) for i in torch.randperm(20).tolist())
"""


def opened(source: str, folder: Path) -> Samples:
    """Open a source of `CODE`."""
    (folder / "mine.py").write_text(CODE)
    return open_data(source, spec_of(3, base=folder))


def first_numbers(stream: Iterator[tuple[tuple[Tensor], Tensor]]) -> list[int]:
    """Return which samples came, in their order."""
    return [int(number) for inputs, _ in stream for number in inputs[0][:, 0]]


def test_samples_come_in_turn_as_often_as_wanted(tmp_path: Path) -> None:
    data = opened("mine.py:Stream[10:40:2]", tmp_path)
    assert (len(data), data.in_turn) == (15, True)
    for _ in range(2):
        assert first_numbers(batches(data, 4)) == list(range(10, 40, 2))
    assert first_numbers(batches(data, 4, samples=5, seed=3)) == [10, 12, 14, 16, 18]
    assert first_numbers(batches(data, 2, first=1, every=3)) == [14, 16, 26, 28, 38]
    assert [int(each[0][0]) for each, _ in (data[7], data[2])] == [24, 14]


def test_training_takes_them_in_their_own_order(tmp_path: Path) -> None:
    shuffled = Shuffled(opened("mine.py:Stream[:9]", tmp_path), 4, seed=0)
    for epoch in range(2):
        assert first_numbers(shuffled.epoch(epoch)) == list(range(8))  # one alone is left out


@pytest.mark.parametrize("workers", (0, 3))
def test_streams_that_part_themselves_among_workers_come_whole(workers: int, tmp_path: Path) -> None:
    shuffled = Shuffled(opened("mine.py:Parted[:100]", tmp_path), 4, seed=0, workers=workers)
    assert first_numbers(shuffled.epoch(0)) == list(range(100))


def test_streams_whose_length_raises_may_be_sliced(tmp_path: Path) -> None:
    assert len(opened("mine.py:Unsure[:7]", tmp_path)) == 7


@pytest.mark.parametrize(
    ("source", "message"),
    (
        ("mine.py:Unsure", "without a length"),
        ("mine.py:Negative", "without a length"),
        ("mine.py:Stream", r"IterableDataset without a length. Say how many .* `mine.py:Stream\[:10000\]`"),
        ("mine.py:Stream[:-1]", "without a length"),
        ("mine.py:Stream[50:0:-1]", "cannot be read backwards"),
    ),
)
def test_streams_that_cannot_be_counted_are_refused(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(source, tmp_path)


@pytest.mark.parametrize("source", ("mine.py:Long", "mine.py:Stream[:101]"))
def test_a_stream_that_ends_early_is_told(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ended before sample 100. Correct its length, or slice it"):
        list(batches(opened(source, tmp_path), 8))


def test_processes_that_share_a_stream_which_shuffles_itself_miss_no_sample(tmp_path: Path) -> None:
    for epoch in range(2):
        seen = []
        for peers in (Peers(0, 2), Peers(1, 2)):
            stream = opened("mine.py:Shuffling[:20]", tmp_path)
            seen += first_numbers(Shuffled(stream, 8, 0, peers=peers).epoch(epoch))
        assert sorted(seen) == list(range(20))


class Pictures(IterableDataset[tuple[Tensor, int]]):
    """Counts how many of its pictures are alive at one time."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for number in range(self.count):
            picture = torch.full((3,), number / self.count)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(picture, self.gone)
            yield picture, number % 5

    def gone(self) -> None:
        """Hear that a picture is let go of."""
        self.alive -= 1


def test_scoring_and_evaluation_keep_no_sample_and_nothing_of_one() -> None:
    spec, model = spec_of(3), nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
    structure = prunecli.find_groups(model, (torch.zeros(1, 3),))
    alive = []
    for count in (64, 2048):
        pictures = Pictures(count)
        data = Samples("a stream", spec, InTurn("a stream", pictures), range(count), in_turn=True)
        gc.collect()
        tracemalloc.start()
        found = score(model, structure, batches(data, 16), cross_entropy, ["taylor-fo"], micro_batch=16)
        evaluate(model, batches(data, 16), spec)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found["taylor-fo"].about.samples == count
        alive.append((pictures.most, held))
    assert alive[0][0] == alive[1][0] <= 32
    assert alive[1][1] < alive[0][1] + 100_000  # bytes: fifty for each sample more would be seen


def test_the_choice_of_ten_million_samples_is_not_listed() -> None:
    tracemalloc.start()
    chosen = choose_samples(10**7, 10**7, seed=1)
    assert len(chosen) == 10**7
    assert len(set(chosen[5_000_000:5_000_064])) == 64
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
    assert choose_samples(10**7, None, seed=1) == range(10**7)
    assert isinstance(choose_samples(MOST_LISTED, 3, seed=1), list)


def test_the_digest_of_the_choice_is_that_of_one_long_text() -> None:
    data = Samples("npz:a.npz[]", spec_of(3), lambda _: (None, None), range(7, 400_007, 2))
    for samples in (None, 200_000, 3):
        indices = choose_samples(len(data), samples, 5)
        table = {"source": "npz:a.npz[]", "positions": [data.positions[i] for i in indices[:]], "seed": 5}
        assert sample_digest(data, samples, 5) == sha256(json.dumps(table).encode()).hexdigest()
