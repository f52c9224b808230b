"""A random order of any number of things, worked out place by place: it takes no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


class Permutation(Sequence[int]):
    """The numbers below `count` in a random order, or the first few of them; the same for the same seed.

    A Feistel network over the next even power of two puts every place somewhere; what falls outside is put
    somewhere again until it is inside (Black and Rogaway, 2002, "cycle walking").

    >>> sorted(Permutation(10, seed=0))
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, count: int, seed: int, length: int | None = None) -> None:
        """Order `count` numbers, of which there are the first `length`."""
        self.available = count
        self.length = count if length is None else min(length, count)
        self.half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)
        self.keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        """Return what stands at a place, or at several."""
        places = range(self.length)[index]
        if isinstance(places, int):
            return int(self._at(np.array([places], dtype=np.uint64))[0])
        chosen = np.arange(places.start, places.stop, places.step, dtype=np.int64).astype(np.uint64)
        found: list[int] = self._at(chosen).tolist()
        return found

    def _at(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        found = self._mixed(places)
        while (outside := found >= self.available).any():
            found[outside] = self._mixed(found[outside])
        return found

    def _mixed(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return where places go among `2 ** (2 * half)`, each to another one."""
        mask = (np.uint64(1) << self.half) - np.uint64(1)
        left, right = places >> self.half, places & mask
        for key in self.keys:
            left, right = right, left ^ (_scrambled(right + key) & mask)
        mixed: NDArray[np.uint64] = (left << self.half) | right
        return mixed


def _scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return values in which every bit depends on all bits (the finisher of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return scrambled
