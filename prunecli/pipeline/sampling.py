"""The samples that importance is measured on, and that recovery works with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import nn

from prunecli.data import batches, open_data, sample_digest
from prunecli.errors import DataError
from prunecli.importance.sharing import in_step
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, float_dtype
from prunecli.pipeline.settings import Machine, Samples
from prunecli.spec.tables import without_folder


@dataclass(frozen=True, eq=False)
class Sample:
    """Batches of samples, and where they come from."""

    stream: Iterator[Any]
    batch_count: int
    """In the stream."""
    source: str
    """Without folders."""
    digest: str
    batches_of_all: int
    """In the streams of all processes that share the sample."""
    order: tuple[int | None, ...] | None = None
    """Where processes keep step, which batch each one of the stream is; see `importance.Share`."""


def find_source(opened: Opened, needing: str) -> str:
    """Return the source of the samples: what importance is measured on, else what training trains on.

    Args:
        opened: the model and its spec.
        needing: the method or option that looks at them, for messages.

    Raises:
        DataError: there is none.
    """
    source = opened.spec.data.sample or opened.spec.data.train
    if source is not None:
        return source
    remedy = (
        "leave it out" if needing.startswith("--") else "choose a `--method` that needs none: `magnitude`"
    )
    raise DataError(
        f"`{needing}` looks at samples, and the spec names none under `[data] sample`. "
        f"Add e.g. `--data npz:train.npz[:1024]`, or {remedy}."
    )


def open_sample(
    opened: Opened,
    needing: str,
    samples: Samples,
    machine: Machine,
    place: Place,
    model: nn.Module,
    first: int = 0,
    every: int = 1,
    keeps_step: bool = False,
) -> Sample:
    """Open the samples of a spec, or those it trains on.

    Args:
        opened: the model and its spec.
        needing: the method or option that looks at them, for messages.
        samples: which samples, and how many.
        machine: its seed decides which.
        place: where they go.
        model: whose precision they get.
        first: which batch is the first one.
        every: take only every so manyth batch from there on.
        keeps_step: have as many batches as any other process, of the same sizes.

    Raises:
        DataError: there are none.
    """
    source = find_source(opened, needing)
    dataset = open_data(source, opened.spec, download=samples.download, seed=machine.seed)
    count = min(samples.samples or len(dataset), len(dataset))
    full, rest = divmod(count, samples.batch_size)
    steps = in_step(full, rest > 0, first, every) if keeps_step else None
    stream = batches(
        dataset,
        samples.batch_size,
        samples.samples,
        machine.seed,
        device=place.device,
        dtype=float_dtype(model),
        first=first,
        every=every,
        numbers=[batch for batch, _ in steps] if steps is not None else None,
    )
    batch_count = ceil(count / samples.batch_size)
    return Sample(
        iter(stream),
        len(range(first, batch_count, every)) if steps is None else len(steps),
        without_folder(source),
        sample_digest(dataset, samples.samples, machine.seed),
        batch_count,
        tuple(number for _, number in steps) if steps is not None else None,
    )
