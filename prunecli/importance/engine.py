"""Model + structure + sample -> scores. One pass over the sample feeds any number of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace

import torch
from torch import Tensor, nn

from prunecli.errors import DataError, ScoreError
from prunecli.graph.structure import Group, Structure
from prunecli.importance.context import Observed, State
from prunecli.importance.gradients import LossFn, Twins, find_parameters, loss_gradients, read_by_forward
from prunecli.importance.micro_batches import Batch, MicroBatch, micro_batches
from prunecli.importance.registry import Method, build_methods, find_method
from prunecli.importance.scores import About, Scores
from prunecli.importance.undisturbed import ScoreBN, require_gradients, undisturbed
from prunecli.strict_json import Json, to_plain

MICRO_BATCH = 64


def score(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[Batch] | None = None,
    loss_fn: LossFn | None = None,
    methods: Sequence[str] = ("taylor-fo",),
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    micro_batch: int = MICRO_BATCH,
    method_args: Mapping[str, object] | None = None,
    score_bn: ScoreBN = ScoreBN.EVAL,
    batch_count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Scores]:
    """Score every unit of the structure by each of the methods, leaving the model bit-identical.

    Args:
        model: The network that `structure` was found on. It stays on its device.
        structure: The groups to score.
        batches: (inputs, targets) pairs; inputs are a tuple of tensors, or a mapping for keyword inputs.
            Methods that look at no data need none.
        loss_fn: Mean loss of a batch.
        methods: Names of methods.
        device: Where batches are moved to; by default where the model is.
        seed: For methods and models that draw random numbers.
        micro_batch: How many samples share one gradient. Batches are cut and joined to this size.
        method_args: Arguments of the methods, by name.
        score_bn: Which statistics normalisations use.
        batch_count: How many micro-batches there will be, where known; `progress` gets it.
        progress: Called after each micro-batch with how many are done, and how many there are (0: not known).

    Raises:
        UsageError: A method or an argument of one is unknown.
        DataError: A method needs samples and there are none.
        ScoreError: A method cannot score a group, the model fails, or a number is not finite.
    """
    chosen = build_methods(methods, method_args or {})
    groups = _of_parameters(structure)
    _refuse_unscorable(chosen, groups)
    by_sample = {name: method for name, method in chosen.items() if find_method(name).needs_data}
    by_parameters = {name: method for name, method in chosen.items() if name not in by_sample}
    if by_sample and (batches is None or loss_fn is None):
        raise DataError(f"`{next(iter(by_sample))}` needs labelled samples and a loss; there are none.")

    scores: dict[str, Scores] = {}
    with undisturbed(model, score_bn, seed):
        twins = find_parameters(model, structure, _tensors_read(by_parameters, groups))
        scores |= _score_parameters(by_parameters, groups, twins, About("", seed=seed))
        if by_sample and batches is not None and loss_fn is not None:
            twins = find_parameters(model, structure, _tensors_read(by_sample, groups))
            about = About("", seed=seed, micro_batch=micro_batch, score_bn=score_bn.value)
            stream = _counted(
                micro_batches(batches, micro_batch, device or _device(model)), batch_count, progress
            )
            scores |= _score_sample(model, by_sample, groups, twins, stream, loss_fn, about)
    return {name: scores[name] for name in chosen}


def _of_parameters(structure: Structure) -> tuple[Group, ...]:
    """Return the groups as methods see them: without members that are buffers."""
    is_parameter = {name for name, _ in structure.parameters()}
    return tuple(
        replace(group, members=tuple(member for member in group.members if member.tensor in is_parameter))
        for group in structure.groups
    )


def _refuse_unscorable(methods: Mapping[str, Method], groups: Sequence[Group]) -> None:
    """Raise before any work if a method cannot score some groups."""
    if not groups:
        raise ScoreError("There is nothing to score: no group of the model can be cut (`prunecli inspect`).")
    for name, method in methods.items():
        refused = [(group.name, reason) for group in groups if (reason := method.refuse(group))]
        if refused:
            (first, reason), more = refused[0], len(refused) - 1
            others = (
                f" (and {more} more: {', '.join(f'`{other}`' for other, _ in refused[1:4])})" if more else ""
            )
            raise ScoreError(
                f"`{name}` cannot score `{first}`, which {reason}{others}. Choose another method."
            )


def _tensors_read(methods: Mapping[str, Method], groups: Iterable[Group]) -> set[str]:
    return {
        member.tensor for group in groups for method in methods.values() for member in method.members(group)
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _counted(
    stream: Iterator[MicroBatch], total: int | None, progress: Callable[[int, int], None] | None
) -> Iterator[MicroBatch]:
    """Report each micro-batch when the next one is asked for, that is when it is done."""
    for done, batch in enumerate(stream, start=1):
        yield batch
        if progress is not None:
            progress(done, total or 0)


def _score_parameters(
    methods: Mapping[str, Method], groups: tuple[Group, ...], twins: Twins, about: About
) -> dict[str, Scores]:
    """Score by the methods that look at no data."""
    seen = Observed(groups, _detached(twins), {}, samples=0, seed=about.seed)
    with torch.no_grad():
        return {
            name: _finished(name, method, method.observe(seen), 1, about) for name, method in methods.items()
        }


def _score_sample(
    model: nn.Module,
    methods: Mapping[str, Method],
    groups: tuple[Group, ...],
    twins: Twins,
    stream: Iterable[MicroBatch],
    loss_fn: LossFn,
    about: About,
) -> dict[str, Scores]:
    """Score by the methods that look at the sample, in one pass over it."""
    require_gradients(model, [tensor for same in twins.values() for tensor in same])
    parameters = _detached(twins)
    totals: dict[str, State] = {}
    for batch in stream:
        found = loss_gradients(model, batch, loss_fn, twins, about.batches)
        if about.batches == 0:
            about = replace(about, notes=_notes_on_missing(model, batch, methods, groups, twins, found))
        seen = Observed(groups, parameters, _filled(found, parameters), batch.samples, about.seed)
        with torch.no_grad():
            states = {name: method.observe(seen) for name, method in methods.items()}
            totals = (
                {name: totals[name].merged(state) for name, state in states.items()} if totals else states
            )
        about = replace(about, batches=about.batches + 1, samples=about.samples + batch.samples)
        del found, seen  # or two sets of gradients are alive in the next backward pass
    if not totals:
        raise DataError("The sample is empty: there is nothing to score the units on.")
    return {
        name: _finished(name, method, totals[name], about.batches, about) for name, method in methods.items()
    }


def _detached(twins: Twins) -> dict[str, Tensor]:
    return {name: same[0].detach() for name, same in twins.items()}


def _filled(found: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zero, which takes no memory, where there is no gradient."""
    return {
        name: parameters[name].new_zeros(()).expand_as(parameters[name]) if gradient is None else gradient
        for name, gradient in found.items()
    }


def _notes_on_missing(
    model: nn.Module,
    batch: MicroBatch,
    methods: Mapping[str, Method],
    groups: Iterable[Group],
    twins: Twins,
    found: Mapping[str, Tensor | None],
) -> tuple[str, ...]:
    """Tell groups that forward passes by (they matter nothing to the loss) from those it only hides.

    Raises:
        ScoreError: Forward reads a group, but hides it from the gradient.
    """
    missing = {name: twins[name] for name, gradient in found.items() if gradient is None}
    read_by = {group.name: _tensors_read(methods, [group]) for group in groups}
    silent = {name: names for name, names in read_by.items() if names <= set(missing)}
    if not silent:
        return ()
    read = read_by_forward(model, batch, missing)
    for name, names in silent.items():
        if names & read:
            raise ScoreError(
                f"The gradient of the loss does not reach `{name}`, though forward reads it: something cuts "
                "it off (torch.no_grad, detach). Use a method without gradients, such as `magnitude`."
            )
    shown = ", ".join(f"`{name}`" for name in silent)
    return (f"Forward does not use {shown}: the units score 0 and are the first to go.",)


def _finished(name: str, method: Method, total: State, batches: int, about: About) -> Scores:
    """Return the scores of one method, checked.

    Raises:
        ScoreError: A score is not finite.
    """
    by_group = {group: values.cpu() for group, values in method.finish(total, batches).items()}
    for group, values in by_group.items():
        broken = int((~values.isfinite()).sum())
        if broken:
            raise ScoreError(
                f"`{name}` gives {broken} of {len(values)} units of `{group}` a score that is not finite. "
                "Check the checkpoint for nan and inf, or score in float32 or float64."
            )
    arguments: Json = to_plain(method) if is_dataclass(method) else {}
    return Scores(replace(about, method=name, arguments=arguments), by_group)
