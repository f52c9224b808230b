"""A model and its test data -> how good its answers are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import ceil
from typing import Any

from torch import nn

from prunecli import data
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, explained, float_dtype
from prunecli.pipeline.settings import Machine, Samples
from prunecli.report import Accuracy


def measure_accuracy(
    opened: Opened,
    model: nn.Module,
    stage: str,
    samples: Samples,
    machine: Machine,
    place: Place,
    listener: Listener,
    most: int | None = None,
) -> Accuracy | None:
    """Return how good a model is on the test data, or the first samples of it; None without data."""
    dataset = open_test(opened, samples, machine)
    if dataset is None:
        return None
    found = evaluate_on(dataset, opened, model, stage, samples, machine, place, listener, most)
    return Accuracy(samples=found.samples, loss=found.loss, top1=found.top1, top5=found.top5)


def open_test(opened: Opened, samples: Samples, machine: Machine) -> data.Samples | None:
    """Open the test data; None where the spec names none."""
    source = opened.spec.data.test
    if source is None:
        return None
    return data.open_data(source, opened.spec, download=samples.download, seed=machine.seed)


def evaluate_on(
    dataset: data.Samples,
    opened: Opened,
    model: nn.Module,
    stage: str,
    samples: Samples,
    machine: Machine,
    place: Place,
    listener: Listener,
    most: int | None = None,
) -> data.Evaluation:
    """Return how good a model is on labelled data, or the first samples of it."""
    lent = place.lend(model)
    count = len(dataset) if most is None else min(len(dataset), most)
    total = ceil(count / samples.batch_size)
    stream = data.batches(
        dataset,
        samples.batch_size,
        None,
        machine.seed,
        device=place.device,
        dtype=float_dtype(lent),
    )
    with explained(lent, f"Measuring accuracy on `{dataset.source}`"):
        return data.evaluate(lent, _counted(islice(stream, total), total, stage, listener), opened.spec)


def _counted(stream: Iterator[Any], total: int, stage: str, listener: Listener) -> Iterator[Any]:
    for done, batch in enumerate(stream):
        listener.progress(stage, done, total)
        yield batch
