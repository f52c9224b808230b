"""A source as text, `npz:digits.npz#train[:1024]`, -> Samples."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from prunecli.arguments import nearest
from prunecli.data.arrays import open_idx, open_npz
from prunecli.data.samples import Fetch, Samples, collate
from prunecli.data.synthetic import open_random
from prunecli.errors import DataError
from prunecli.spec import ModelSpec
from prunecli.spec.code import call_factory, import_object

_SLICE = re.compile(r"\[(-?\d*):(-?\d*)(?::(-?\d*))?\]$")

FORMS = (
    "`npz:FILE#PART`, `imagefolder:DIR`, `idx:IMAGES,LABELS`, `torchvision:CIFAR10?split=test`, "
    "`random:1024` or `file.py:DATASET`, each with an optional `[start:stop]`"
)


class SyntheticDataWarning(UserWarning):
    """Samples are made up: what is measured on them says nothing about the task."""


@dataclass(frozen=True)
class Source:
    """A source taken apart."""

    scheme: str
    """Empty for code."""
    place: str
    part: slice


def parse_source(text: str) -> Source:
    """Take a source apart.

    Raises:
        DataError: the text has none of the known forms.

    >>> parse_source("npz:digits.npz#train[:1024]")
    Source(scheme='npz', place='digits.npz#train', part=slice(None, 1024, None))
    """
    found = _SLICE.search(text)
    numbers = [int(number) if number else None for number in (found.groups() if found else ())]
    part = slice(*numbers) if numbers else slice(None)
    if part.step == 0:
        raise DataError(f"`{text}`: the step of a slice cannot be 0.")
    plain = text[: found.start()] if found else text
    scheme, colon, place = plain.partition(":")
    if colon and place and scheme in _OPENERS:
        return Source(scheme, place, part)
    if ".py:" not in plain:
        hint = nearest(f"{scheme}:", [f"{known}:" for known in _OPENERS]) if colon else ""
        raise DataError(f"`{text}` is no source of samples.{hint} Write {FORMS}.")
    return Source("", plain, part)


def open_data(
    source: str, spec: ModelSpec, *, download: bool = False, seed: int = 0, trust: bool = False
) -> Samples:
    """Open a source of (inputs, target) samples.

    Args:
        source: as in the spec's [data] or `--data`.
        spec: says what the inputs are, and where relative paths start.
        download: fetch a torchvision dataset that is not in the cache.
        seed: what synthetic samples are drawn from.
        trust: run the code that a spec from inside a checkpoint names.

    Raises:
        DataError: the source is malformed, missing or empty.
        SpecError: the source names code that failed or is not trusted.
    """
    parsed = parse_source(source)
    if parsed.scheme:
        count, fetch = _OPENERS[parsed.scheme](parsed.place, spec, download, seed, trust)
    else:
        count, fetch = _open_code(source, parsed, spec, trust)
    positions = range(count)[parsed.part]
    if not positions:
        raise DataError(
            f"`{source}` has no samples: the source has {count}, and the slice leaves none of them."
        )
    return Samples(source, spec, fetch, positions, in_turn=isinstance(fetch, InTurn))


Opened = tuple[int, Fetch]
"""How many samples a source has, and how to fetch some."""


def _open_code(source: str, parsed: Source, spec: ModelSpec, trust: bool) -> Opened:
    """Call the user's factory for a dataset."""
    granted, text = trust or spec.may_run(source), parsed.place
    dataset = call_factory(spec, text, import_object(spec, text, trust=granted), {})
    if isinstance(dataset, IterableDataset):
        return _count_in_turn(source, parsed.part, dataset), InTurn(source, dataset)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"`{text}` returned {type(dataset).__name__}, which has no length or no items. "
            "Return a torch.utils.data.Dataset of (input, target)."
        )
    return len(dataset), lambda indices: collate([dataset[index] for index in indices])


def _count_in_turn(source: str, part: slice, dataset: IterableDataset[Any]) -> int:
    """Return how many items an iterable dataset has, or how many of them the slice wants."""
    if (part.step or 1) < 1:
        raise DataError(f"`{source}`: an IterableDataset cannot be read backwards.")
    with suppress(
        TypeError, ValueError, ArithmeticError, NotImplementedError
    ):  # raised where a length depends on something
        return len(dataset)  # type: ignore[arg-type]
    if part.stop is None or part.stop < 0 or (part.start or 0) < 0:
        raise DataError(
            f"`{source}` is an IterableDataset without a length. Say how many samples to read: "
            f"`{source.partition('[')[0]}[:10000]`, or give it a `__len__`."
        )
    return int(part.stop)


class InTurn:
    """Fetches the items of an iterable dataset: forwards, and again from the start where it must go back."""

    def __init__(self, source: str, dataset: IterableDataset[Any]) -> None:
        self.source, self.dataset = source, dataset
        self.stream: Iterator[Any] | None = None
        self.position = 0

    def __call__(self, indices: Sequence[int]) -> tuple[Any, Any]:
        """Return the items at ascending places; those between are read and let go of."""
        if self.stream is None or indices[0] < self.position:
            self.stream, self.position = iter(self.dataset), 0
        items: list[Any] = []
        for index in indices:
            items += islice(self.stream, index - self.position, index - self.position + 1)
            self.position = index + 1
        if len(items) < len(indices):
            self.stream = None
            raise DataError(
                f"`{self.source}` ended before sample {indices[len(items)]}. Correct its length, or slice it."
            )
        return collate(items)


_MOST_DIGITS = 15
"""Of a number of samples."""


def _open_synthetic(place: str, spec: ModelSpec, _: bool, seed: int, trust: bool) -> Opened:
    if not place.isascii() or not place.isdigit() or len(place) > _MOST_DIGITS:
        raise DataError(f"`random:{place[:40]}` needs a number of samples, as in `random:1024`.")
    warnings.warn(
        "`random:` samples are made up: accuracy and data-driven importance measured on them mean nothing.",
        SyntheticDataWarning,
        stacklevel=3,
    )
    return int(place), open_random(spec, seed, trust)


def _open_pictures(place: str, spec: ModelSpec, *_: object) -> Opened:
    from prunecli.data.pictures import open_imagefolder  # torchvision is slow to import

    return open_imagefolder(place, spec)


def _open_torchvision(place: str, spec: ModelSpec, download: bool, *_: object) -> Opened:
    from prunecli.data.pictures import open_torchvision

    return open_torchvision(place, spec, download)


_OPENERS: dict[str, Callable[[str, ModelSpec, bool, int, bool], Any]] = {
    "npz": lambda place, spec, *_: open_npz(place, spec),
    "idx": lambda place, spec, *_: open_idx(place, spec),
    "imagefolder": _open_pictures,
    "torchvision": _open_torchvision,
    "random": _open_synthetic,
}
