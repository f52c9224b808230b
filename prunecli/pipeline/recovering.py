"""A model that was cut -> one that answers more like the dense one, by statistics or least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunecli.errors import DataError, UsageError
from prunecli.graph.copying import copy_module, named_tensors
from prunecli.pipeline.learning import course_of, learn
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, explained, parse_bytes
from prunecli.pipeline.sampling import find_source, open_sample
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.telling import Cut
from prunecli.recovery import recalibrate_norms, reconstruct
from prunecli.report import Accuracy, Notice, RecoveredLayer, Recovery

_ALIVE = 8
"""So many activations of the largest size are alive at a time while layers are re-solved."""

PLAIN_SAMPLES = 2000
"""So many test samples at most tell how good the plain cut was."""

FEW_SAMPLES = 64
"""Recovery on fewer samples is warned about."""

Measure = Callable[..., Accuracy | None]
"""Takes a model and a stage, and how many samples at most."""


def check_recovery(choices: Choices) -> None:
    """Refuse choices that contradict each other, before any file is opened.

    Raises:
        UsageError: naming them.
    """
    if choices.recovery.recalibrate_bn and choices.recovery.reconstruct:
        raise UsageError(
            "`--recalibrate-bn` and `--reconstruct` do not go together: statistics measured after layers "
            "were re-solved undo part of what that won. Choose one; `--reconstruct` wins back more."
        )


def check_sample(opened: Opened, choices: Choices) -> None:
    """Make sure that there are samples to recover on, before anything is measured.

    Raises:
        DataError: there are none.
    """
    for name in ("recalibrate_bn", "reconstruct"):
        if getattr(choices.recovery, name):
            find_source(opened, f"--{name.replace('_', '-')}")


def recover(
    cut: Cut, choices: Choices, place: Place, listener: Listener, measure: Measure
) -> tuple[Cut, Recovery | None]:
    """Return the cut with a recovered model, and what was done; the same cut if nothing was asked for.

    Raises:
        DataError: there is no sample to recover on.
    """
    wanted = choices.recovery
    course = course_of(cut, choices)
    if course is None and not (wanted.recalibrate_bn or wanted.reconstruct):
        return cut, None
    before = measure(cut.smaller, "accuracy of the plain cut", most=PLAIN_SAMPLES)
    smaller = place.lend(cut.smaller)
    if course is not None:
        recovered, found = learn(cut, course, choices, place, smaller, listener)
    elif wanted.recalibrate_bn:
        recovered, found = _recalibrate(cut, choices, place, smaller, listener)
    else:
        recovered, found = _reconstruct(cut, choices, place, smaller, listener)
    numbers = named_tensors(recovered)
    back = copy_module(cut.smaller, lambda name, tensor: _fitting(numbers[name], tensor))
    return replace(cut, smaller=back), replace(found, accuracy_before=before)


def recovery_notices(
    recovery: Recovery, recovered: nn.Module, after: Accuracy | None, measure: Measure
) -> tuple[Notice, ...]:
    """Return what the user should know before trusting a recovery: poor samples, or accuracy lost by it."""
    texts = []
    if recovery.sample.startswith("random:"):
        texts.append(f"Recovery ran on made-up samples (`{recovery.sample}`): it fits the model to noise.")
    elif recovery.samples < FEW_SAMPLES:
        texts.append(
            f"Recovery ran on {recovery.samples} samples only: it fits the model to these. "
            f"Give it {FEW_SAMPLES} or more (`--recovery-samples`, `--samples`, `--max-memory`)."
        )
    before = recovery.accuracy_before
    if before is not None and after is not None and after.samples != before.samples:
        after = measure(recovered, "accuracy on as many samples", most=before.samples)
    if before is not None and after is not None and (fall := _describe_fall(before, after)):
        texts.append(f"Recovery made the model worse: {fall} on {before.samples:,} test samples.")
    return tuple(Notice("recovery", text) for text in texts)


def _describe_fall(before: Accuracy, after: Accuracy) -> str | None:
    """Return from what to what top1 fell, or the loss rose where there is no top1; None if it did not."""
    if before.top1 is not None and after.top1 is not None:
        is_worse = after.top1 < before.top1
        return f"top1 fell from {before.top1:.2%} to {after.top1:.2%}" if is_worse else None
    if before.loss is not None and after.loss is not None and after.loss > before.loss:
        return f"the loss rose from {before.loss:.4g} to {after.loss:.4g}"
    return None


def _recalibrate(
    cut: Cut, choices: Choices, place: Place, smaller: nn.Module, listener: Listener
) -> tuple[nn.Module, Recovery]:
    sample = open_sample(cut.opened, "--recalibrate-bn", _limited(choices), choices.machine, place, smaller)
    seen = 0

    def inputs() -> Iterator[Any]:
        nonlocal seen
        for done, (each, _) in enumerate(sample.stream):
            listener.progress("recalibrating", done, sample.batch_count)
            seen += len(tree_leaves(each)[0])
            yield (each,) if isinstance(each, Tensor) else each

    with explained(smaller, "Recalibrating"):
        recovered, norms = recalibrate_norms(smaller, inputs())
    notes = () if norms else ("The model has no running statistics: recalibrating changed nothing.",)
    return recovered, Recovery("recalibrate-bn", seen, sample.source, norms=norms, notes=notes)


def _reconstruct(
    cut: Cut, choices: Choices, place: Place, smaller: nn.Module, listener: Listener
) -> tuple[nn.Module, Recovery]:
    sample = open_sample(cut.opened, "--reconstruct", _limited(choices), choices.machine, place, smaller)
    batches = [inputs for inputs, _ in sample.stream]
    if not batches:
        raise DataError("The sample is empty: there is nothing to re-solve layers on.")
    batches = [(each,) if isinstance(each, Tensor) else each for each in batches]
    whole = tree_map(lambda *parts: torch.cat(parts), *batches)
    dense = place.lend(cut.opened.model)
    memory = parse_bytes(choices.machine.max_memory, "--max-memory")
    with explained(dense, "Running one sample"):
        most = _samples_that_fit(dense, whole, memory)
    whole = tree_map(lambda tensor: tensor[:most], whole)
    args, kwargs = ((), whole) if isinstance(whole, Mapping) else (tuple(whole), {})
    assert cut.plan is not None
    with explained(smaller, "Re-solving layers"):
        recovered, done = reconstruct(
            dense,
            smaller,
            cut.opened.structure,
            cut.plan.kept(),
            args,
            kwargs,
            seed=choices.machine.seed,
            tell=partial(listener.progress, "re-solving layers"),
        )
    layers = tuple(RecoveredLayer(each.layer, each.error_before, each.error_after) for each in done.layers)
    notes = tuple(f"Not re-solved: {text}." for text in done.skipped)
    return recovered, Recovery("reconstruct", done.samples, sample.source, layers=layers, notes=notes)


def _fitting(numbers: Tensor, tensor: Tensor) -> Tensor:
    """Return the numbers where and in what precision the tensor is."""
    return numbers.detach().to(tensor.device, tensor.dtype).contiguous().clone()


def _limited(choices: Choices) -> Any:
    """Return the choice of samples, no more than recovery takes."""
    most = choices.recovery.recovery_samples
    return replace(choices.samples, samples=min(choices.samples.samples or most, most))


def _samples_that_fit(model: nn.Module, whole: Any, memory: int) -> int:
    """Return how many samples can be run as one batch: as many as their activations have room."""
    largest = 1

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        sizes = [
            leaf.numel() * leaf.element_size() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)
        ]
        largest = max(largest, *sizes, 1)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        one = tree_map(lambda tensor: tensor[:1], whole)
        with torch.no_grad():
            model(**one) if isinstance(one, Mapping) else model(*one)
    finally:
        for handle in handles:
            handle.remove()
    return max(memory // (_ALIVE * largest), 2)
