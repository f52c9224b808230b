"""A model and its data -> scores of its units, accuracy of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from torch import nn

from prunecli.data import batches, evaluate, open_data, sample_digest
from prunecli.data import loss_function as loss_of
from prunecli.errors import DataError, UsageError
from prunecli.importance import ScoreBN, Scores, build_methods, find_method, score
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, explained, float_dtype
from prunecli.pipeline.settings import Importance, Machine, Samples
from prunecli.report import Accuracy
from prunecli.spec.tables import without_folder


def check_importance(importance: Importance) -> None:
    """Refuse methods and arguments that nobody knows, before any file is opened.

    Raises:
        UsageError: naming the one that is wrong.
    """
    build_methods(importance.method, _arguments(importance))


def measure_scores(
    opened: Opened,
    importance: Importance,
    samples: Samples,
    machine: Machine,
    place: Place,
    listener: Listener,
) -> dict[str, Scores]:
    """Score every unit by each method asked for, in one pass over the sample.

    Raises:
        UsageError: a method or one of its arguments is unknown.
        DataError: a method looks at data, and there is none.
    """
    model = place.lend(opened.model)
    sample = None
    if any(find_method(name).needs_data for name in importance.method):
        sample = _sample(opened, importance, samples, machine, place, model)
    scores = score(
        model,
        opened.structure,
        sample.stream if sample else None,
        loss_of(opened.spec),
        importance.method,
        seed=machine.seed,
        micro_batch=samples.batch_size,
        method_args=_arguments(importance),
        score_bn=ScoreBN(importance.score_bn),
        batch_count=sample.batch_count if sample else 0,
        progress=lambda done, total: listener.progress("scoring", done, total or None),
    )
    return {name: _with_source(found, sample) for name, found in scores.items()}


def measure_accuracy(
    opened: Opened,
    model: nn.Module,
    stage: str,
    samples: Samples,
    machine: Machine,
    place: Place,
    listener: Listener,
) -> Accuracy | None:
    """Return how good a model is on the test data; None where there is none."""
    source = opened.spec.data.test
    if source is None:
        return None
    lent = place.lend(model)
    dataset = open_data(source, opened.spec, download=samples.download, seed=machine.seed)
    total = ceil(len(dataset) / samples.batch_size)
    stream = batches(
        dataset,
        samples.batch_size,
        None,
        machine.seed,
        device=place.device,
        dtype=float_dtype(lent),
    )
    with explained(lent, f"Measuring accuracy on `{source}`"):
        found = evaluate(lent, _counted(stream, total, stage, listener), opened.spec)
    return Accuracy(samples=found.samples, loss=found.loss, top1=found.top1, top5=found.top5)


def _arguments(importance: Importance) -> dict[str, str]:
    return dict(map(split_argument, importance.method_arg))


def split_argument(text: str) -> tuple[str, str]:
    """Take `NAME=VALUE` apart.

    Raises:
        UsageError: there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"`--method-arg {text}`: write NAME=VALUE. `prunecli methods NAME` lists the names.")
    return name.strip().replace("-", "_"), value.strip()


@dataclass(frozen=True, eq=False)
class _Sample:
    """What importance is measured on."""

    stream: Iterator[Any]
    batch_count: int
    source: str
    """Without folders."""
    digest: str


def _sample(
    opened: Opened, importance: Importance, samples: Samples, machine: Machine, place: Place, model: nn.Module
) -> _Sample:
    """Open the samples that importance is measured on."""
    source = opened.spec.data.sample or opened.spec.data.train
    if source is None:
        needing = next(name for name in importance.method if find_method(name).needs_data)
        raise DataError(
            f"`{needing}` looks at labelled samples, and the spec names none under `[data] sample`. "
            "Add e.g. `--data npz:train.npz[:1024]`, or choose a `--method` that needs none: `magnitude`."
        )
    dataset = open_data(source, opened.spec, download=samples.download, seed=machine.seed)
    count = min(samples.samples or len(dataset), len(dataset))
    stream = batches(
        dataset,
        samples.batch_size,
        samples.samples,
        machine.seed,
        device=place.device,
        dtype=float_dtype(model),
    )
    return _Sample(
        iter(stream),
        ceil(count / samples.batch_size),
        without_folder(source),
        sample_digest(dataset, samples.samples, machine.seed),
    )


def _with_source(scores: Scores, sample: _Sample | None) -> Scores:
    """Say in the scores which samples they were measured on, if they were."""
    if sample is None or not scores.about.samples:
        return scores
    about = replace(scores.about, sample=sample.source, sample_digest=sample.digest)
    return replace(scores, about=about)


def _counted(stream: Iterator[Any], total: int, stage: str, listener: Listener) -> Iterator[Any]:
    for done, batch in enumerate(stream):
        listener.progress(stage, done, total)
        yield batch
