"""A model and its sample -> scores of its single weights."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunecli.data import loss_function, main_output
from prunecli.errors import NotPrunableError
from prunecli.importance import Granularity, ScoreBN, Scores, build_methods, find_method
from prunecli.importance.registry import Needs
from prunecli.model import example_inputs
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, explained, float_dtype, parse_bytes
from prunecli.pipeline.sampling import Sample, open_sample
from prunecli.pipeline.scoring import agree, annotated, arguments_of_method, note_idle
from prunecli.pipeline.settings import Choices, Importance, Samples
from prunecli.weights import Lender, prunable_weights, score_weights
from prunecli.weights import Sample as Scored

WEIGHT = Granularity.WEIGHT

BATCH = 128
"""Samples in a batch that weights are scored on, unless the user says otherwise."""

_SPARE = 4
"""So many times the samples wanted are drawn where so many of each class are: classes are not even."""


def prunes_weights(importance: Importance) -> bool:
    """Return whether single weights are scored and pruned, not units."""
    return importance.granularity == WEIGHT.value


def looks_at_gradients(importance: Importance) -> bool:
    """Return whether the (first) method that scores weights does."""
    return Needs.GRADIENTS in find_method(importance.method[0], WEIGHT).needs


def check_weighing(importance: Importance) -> None:
    """Refuse methods and arguments that nobody knows, before any file is opened.

    Raises:
        UsageError: naming the one that is wrong.
    """
    build_methods(importance.method, arguments_of_method(importance), WEIGHT)


def measure_weights(
    opened: Opened, choices: Choices, place: Place, listener: Listener, against: str | None = None
) -> dict[str, Scores]:
    """Score every prunable weight by each method asked for, and by the one they are compared with.

    Raises:
        UsageError: a method or one of its arguments is unknown.
        DataError: a method looks at data, and there is none.
    """
    found = {}
    names = dict.fromkeys((*choices.importance.method, *([against] if against else [])))
    for name in names:
        lender, sample = lender_of(opened, choices, name, place, listener)
        scores, about = score_weights(lender)
        flat = {weight: each.double().flatten() for weight, each in scores.items()}
        found[name] = Scores(annotated(about, sample, opened), flat)
    return found


def lender_of(
    opened: Opened, choices: Choices, method: str, place: Place, listener: Listener
) -> tuple[Lender, Sample | None]:
    """Return the model as a method may look at it, and the sample that it looks at.

    Raises:
        NotPrunableError: the model has no weights that can be pruned.
        UsageError: the method is unknown.
        DataError: it looks at data, and there is none.
        InputError: other processes that share the work were told something else.
    """
    names = _prunable(opened, choices)
    arguments = _arguments(choices.importance, method)
    agree(opened, choices.importance, choices.samples, choices.machine, place, choices.weights)
    model = place.lend(opened.model)
    sample = None
    if find_method(method, WEIGHT).needs_data:
        made = build_methods([method], arguments, WEIGHT)[method]
        sample = _open_sample(opened, choices, method, made, place, model)
        note_idle(sample.batch_count, place.processes.count, _batch_size(choices), listener)
    example = example_inputs(opened.spec, dtype=float_dtype(model))
    lender = Lender(
        model,
        opened.structure,
        tree_map_only(Tensor, lambda each: each.to(place.device), example),
        names,
        method,
        arguments,
        Scored(sample.stream, loss_function(opened.spec), _batch_size(choices)) if sample else None,
        opened.masks,
        ScoreBN(choices.importance.score_bn),
        choices.machine.seed,
        parse_bytes(choices.machine.max_memory, "--max-memory"),
        lambda stage, done, total: listener.progress(stage, done, total or None),
        place.processes,
    )
    return lender, sample


def _prunable(opened: Opened, choices: Choices) -> tuple[str, ...]:
    """Return the names of the weights that may go."""
    with_classifier, ignore = choices.weights.prune_classifier, choices.budget.ignore
    names = prunable_weights(opened.model, opened.structure, with_classifier, ignore)
    if not names:
        hint = "" if with_classifier else " `--prune-classifier` prunes the layers that outputs come from."
        raise NotPrunableError(
            f"`{opened.name}` has no weights of convolutions or linear layers left to prune.{hint}"
        )
    return names


def _arguments(importance: Importance, method: str) -> dict[str, str]:
    """Return those of the arguments that a method declares; others are for the methods beside it."""
    declared = find_method(method, WEIGHT).arguments
    given = arguments_of_method(importance)
    return {name: value for name, value in given.items() if name in declared}


def _open_sample(
    opened: Opened, choices: Choices, name: str, method: Any, place: Place, model: nn.Module
) -> Sample:
    """Open so many samples as the method wants, unless the user says how many."""
    samples = replace(choices.samples, batch_size=_batch_size(choices))
    if samples.samples is None:
        count = choices.weights.score_batches or _batches_wanted(opened, method, samples.batch_size)
        samples = replace(samples, samples=count * samples.batch_size)
    return open_sample(opened, name, samples, choices.machine, place, model)


def _batch_size(choices: Choices) -> int:
    """Return how many samples are scored together, which need not be how many are trained on together."""
    own = choices.samples.batch_size
    is_chosen = "batch_size" in choices.given or own != Samples().batch_size
    return own if is_chosen else BATCH


def _batches_wanted(opened: Opened, method: Any, batch_size: int) -> int:
    per_class: int = getattr(method, "per_class", 0)
    if per_class:
        return ceil(per_class * _outputs(opened) * _SPARE / batch_size)
    wanted: int = getattr(method, "wants_batches", 1)
    return wanted


def _outputs(opened: Opened) -> int:
    """Return how many numbers the model puts out for one sample: its classes."""
    args, kwargs = opened.example
    with torch.no_grad(), explained(opened.model, "Running one sample"):
        return int(main_output(opened.model(*args, **kwargs)).shape[-1])
