"""Samples -> batches to train on, in another order each epoch, and the same ones again after a resume."""

from __future__ import annotations

import multiprocessing
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prunecli.data.augmentation import Augmentation
from prunecli.data.batches import Batch, choose_samples
from prunecli.data.samples import Change, Samples
from prunecli.errors import DataError, PruneError, UsageError
from prunecli.peers import ALONE, Peers

_ORDER, _READING, _MIXING, _CHANGING = 1, 2, 3, 4
"""What random numbers are for, as the first part of their seed: a trailing 0 would change no seed."""


@dataclass(frozen=True, eq=False)
class Shuffled:
    """The samples in another random order each epoch, in batches; the same for the same seed and epoch.

    A last batch of a single sample is left out where there are others: batch normalisation fails on it.
    Several processes have the same batches, of which each reads its part.
    """

    samples: Samples
    batch_size: int
    seed: int
    augment: Augmentation | None = None
    workers: int = 0
    """Processes that read and augment; the batches do not depend on their number."""
    peers: Peers = ALONE
    """Those that share the batches; these do not depend on their number either."""

    def __post_init__(self) -> None:
        """Check the sizes, and that there are pictures where these are to be changed."""
        if self.batch_size < 1:
            raise DataError(f"A batch of {self.batch_size} samples is empty; the size must be at least 1.")
        if self.workers and "fork" not in multiprocessing.get_all_start_methods():
            raise UsageError(f"`--workers {self.workers}`: this system cannot fork processes; leave it out.")
        if self.augment is not None and self.augment.steps and self.samples.picture is None:
            shapes = ", ".join(str(list(item.shape)) for item in self.samples.spec.inputs)
            raise UsageError(
                f"`--augment` changes inputs of shape [channels, height, width]; the spec's are {shapes}."
            )

    @property
    def batch_count(self) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(len(self.samples), self.batch_size)
        return whole + (rest > 1 or (rest == 1 and whole == 0))

    def size_of(self, batch: int) -> int:
        """Return how many samples the batch of that number has, for all processes together."""
        return min(self.batch_size, len(self.samples) - batch * self.batch_size)

    @property
    def mixes(self) -> bool:
        """Return whether `mix` mixes the samples of a batch."""
        return self.augment is not None and bool(self.augment.mixtures)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from the one at `start` on, on the CPU.

        Of several processes, each gets its part of every batch; no inputs and None where that is empty.

        Raises:
            DataError: a sample cannot be read, or does not fit the spec.
        """
        loader = DataLoader(
            _Epoch(self, number),
            batch_size=None,
            sampler=range(start, self.batch_count),
            # of samples in turn each process would read all, or the share that the dataset gives it
            num_workers=min(self.workers, 1) if self.samples.in_turn else self.workers,
            generator=torch.Generator(),  # else it draws from the global one
            multiprocessing_context="fork" if self.workers else None,  # datasets need not survive a pickle
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # children neither lock nor print
            stream = iter(loader)
        for batch in stream:
            if isinstance(batch, PruneError):
                raise batch
            yield batch

    def mix(self, batch: Batch, classes: int, epoch: int, number: int) -> Batch:
        """Return the whole batch of that number mixed, on the device it is on; see `Augmentation.mix`.

        Raises:
            DataError: the batch is not one of pictures with a class number each.
        """
        if self.augment is None:
            return batch
        with _seeded(_MIXING, self.seed, epoch, number):
            return self.augment.mix(*batch, classes)


class _Epoch(Dataset["Batch | PruneError"]):
    """The batches of one epoch, by number."""

    def __init__(self, shuffled: Shuffled, number: int) -> None:
        samples = shuffled.samples
        self.order = choose_samples(
            len(samples), len(samples), _seed_of(_ORDER, shuffled.seed, number), in_turn=samples.in_turn
        )
        self.shuffled, self.number = shuffled, number

    def __getitem__(self, index: int) -> Batch | PruneError:
        """Return the batch, or why there is none: what a worker raises comes out with its traceback."""
        size = self.shuffled.batch_size
        chosen = self.order[index * size : (index + 1) * size]
        part = self.shuffled.peers.part(len(chosen))
        if part.start == part.stop:
            return (), None
        numbers = (self.shuffled.seed, self.number, index)
        try:
            with _seeded(_READING, *numbers, *self._of_part(part)):
                return self.shuffled.samples.batch(chosen[part], self._changing(part, numbers))
        except PruneError as error:
            return error

    def _of_part(self, part: slice) -> tuple[int, ...]:
        """Return what seeds a part differently; a stream that shuffles itself has one order for all parts."""
        return (part.start,) if part.start and not self.shuffled.samples.in_turn else ()

    def _changing(self, part: slice, numbers: tuple[int, ...]) -> Change | None:
        """Return what changes the pictures of a part as those of the whole batch would be changed."""
        if self.shuffled.augment is None:
            return None
        drawn = np.random.SeedSequence((_CHANGING, *numbers)).generate_state(part.stop, np.uint64)
        return partial(self.shuffled.augment, seeds=[int(seed) >> 1 for seed in drawn[part.start :]])


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed all generators that transforms or a dataset of the user's may draw from; then give them back."""
    seed = _seed_of(*numbers)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # leaves those of accelerators alone
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
