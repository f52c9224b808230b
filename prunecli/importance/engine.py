"""Model + structure + sample -> scores. One pass over the sample feeds any number of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from prunecli.arguments import arguments_of
from prunecli.errors import DataError, ScoreError
from prunecli.graph.structure import Group, Member, Role, Side, Structure
from prunecli.graph.twins import installed as twins_installed
from prunecli.importance.context import Observed, State
from prunecli.importance.fallback import share_out, some
from prunecli.importance.gates import Gate
from prunecli.importance.gradients import (
    LossFn,
    Twins,
    blaming,
    filled,
    find_parameters,
    loss_gradients,
    read_by_forward,
)
from prunecli.importance.look import MEMORY, Conditions, Journal, Look, Tell
from prunecli.importance.micro_batches import Batch, MicroBatch, micro_batches
from prunecli.importance.registry import Method, Needs, Noting, build_methods, find_method
from prunecli.importance.scores import About, Scores
from prunecli.importance.sharing import Gathered, Observations, Share
from prunecli.importance.undisturbed import ScoreBN, require_gradients, seeded, undisturbed

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
    fallback: str | None = None,
    score_bn: ScoreBN = ScoreBN.EVAL,
    batch_count: int | None = None,
    memory: int = MEMORY,
    gate: Gate = Gate.AFTER_BN,
    progress: Tell | None = None,
    journal: Journal | None = None,
    share: Share | None = None,
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
        fallback: Name of the method that scores the groups that another one refuses; else that is an error.
        score_bn: Which statistics normalisations use.
        batch_count: How many micro-batches there will be, where known; `progress` gets it.
        memory: Bytes that activations may take in looks that can be split: second derivatives, the oracle.
        gate: Where gates stand. Only scores of gates behind normalisations say what a cut does.
        progress: Hears (stage, how much of it is done, how much there is; 0: not known).
        journal: Keeps what takes long to find (the oracle's losses), so that a run may be taken up again.
        share: Which of the micro-batches this process looks at, where several share the work.

    Raises:
        UsageError: A method or an argument of one is unknown.
        DataError: A method needs samples and there are none.
        ScoreError: A method cannot score a group, the model fails, or a number is not finite.
    """
    built = build_methods([*methods, *([fallback] if fallback else [])], method_args or {})
    groups = groups_of_parameters(structure, gate)
    shares = share_out(built, methods, groups, fallback)
    chosen = shares.methods
    by_sample = {name: method for name, method in chosen.items() if find_method(name).needs_data}
    by_parameters = {name: method for name, method in chosen.items() if name not in by_sample}
    if by_sample and batches is None:
        raise DataError(f"`{next(iter(by_sample))}` looks at samples; there are none.")
    if loss_fn is None and (
        labelled := [name for name in by_sample if Needs.LABELS in find_method(name).needs]
    ):
        raise DataError(f"`{labelled[0]}` needs labelled samples and a loss; there is no loss.")

    share = share or Share()
    scores: dict[str, Scores] = {}
    if by_parameters:  # of which forward passes know nothing: the model does not run
        with seeded(seed):
            twins = find_parameters(model, structure, _tensors_read(by_parameters, groups))
            about = About("", seed=seed)
            scores |= _score_parameters(by_parameters, groups, twins, about, share.is_parted)
    if by_sample and batches is not None:
        with undisturbed(model, score_bn, seed):
            twins = find_parameters(model, structure, _tensors_read(by_sample, groups))
            about = About("", seed=seed, micro_batch=micro_batch, score_bn=score_bn.value, gate=gate.value)
            tell = progress or _say_nothing
            stream = _counted(
                micro_batches(batches, micro_batch, device or _device(model)), batch_count, tell
            )
            conditions = Conditions(
                model,
                groups,
                loss_fn,
                score_bn,
                memory,
                tell,
                journal or _keep_nothing,
                is_parted=share.is_parted,
            )
            with twins_installed(model, structure.rewritten):
                scores |= _score_sample(conditions, by_sample, twins, stream, about, share)
    return {name: _with_note_on_zeros(found) for name, found in shares.joined(scores, methods).items()}


def groups_of_parameters(structure: Structure, gate: Gate = Gate.AFTER_BN) -> tuple[Group, ...]:
    """Return the groups as methods see them: without members that are buffers, gated where asked for."""
    is_parameter = {name for name, _ in structure.parameters()}
    return tuple(
        replace(
            group,
            members=tuple(_gated(member, gate) for member in group.members if member.tensor in is_parameter),
        )
        for group in structure.groups
    )


def _gated(member: Member, gate: Gate) -> Member:
    """Return the member, gated before normalisations if that is wanted."""
    if gate is Gate.AFTER_BN:
        return member
    makes = member.side is Side.PRODUCER and member.role in (Role.WEIGHT, Role.BIAS)
    return replace(member, gated=makes)


def _tensors_read(methods: Mapping[str, Method], groups: Iterable[Group]) -> set[str]:
    return {
        member.tensor for group in groups for method in methods.values() for member in method.members(group)
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass


def _keep_nothing(key: str, find: Callable[[], Tensor]) -> Tensor:
    return find()


def _counted(stream: Iterator[MicroBatch], total: int | None, tell: Tell) -> Iterator[MicroBatch]:
    """Report each micro-batch when the next one is asked for, that is when it is done."""
    for done, batch in enumerate(stream, start=1):
        yield batch
        tell("scoring", done, total or 0)


def _score_parameters(
    methods: Mapping[str, Method], groups: tuple[Group, ...], twins: Twins, about: About, parted: bool
) -> dict[str, Scores]:
    """Score by the methods that look at no data."""
    parameters = _detached(twins)
    seen = Observed(groups, Gathered(parameters) if parted else parameters, {}, samples=0, seed=about.seed)
    with torch.no_grad():
        return {
            name: _finished(name, method, method.observe(seen), 1, about) for name, method in methods.items()
        }


def _score_sample(
    conditions: Conditions,
    methods: Mapping[str, Method],
    twins: Twins,
    stream: Iterable[MicroBatch],
    about: About,
    share: Share,
) -> dict[str, Scores]:
    """Score by the methods that look at the sample, in one pass over it."""
    seen = share.together(_observe(conditions, methods, twins, stream, about.seed, share))
    if not seen.states:
        raise DataError("The sample is empty: there is nothing to score the units on.")
    about = replace(about, batches=seen.batches, samples=seen.samples, loss=seen.mean_loss, notes=seen.notes)
    return {
        name: _finished(name, method, seen.states[name], seen.batches, about)
        for name, method in methods.items()
    }


def _observe(
    conditions: Conditions,
    methods: Mapping[str, Method],
    twins: Twins,
    stream: Iterable[MicroBatch],
    seed: int,
    share: Share,
) -> Observations:
    """Show the methods this process's micro-batches, one by one."""
    model, groups, parameters = conditions.model, conditions.groups, _detached(twins)
    differentiating = {
        name: each
        for name, each in methods.items()
        if Needs.GRADIENTS in find_method(name).needs and not share.is_parted
    }
    followed = {name: twins[name] for name in _tensors_read(differentiating, groups)}
    total = Observations()
    for number, batch in share.numbered(stream):
        found: dict[str, Tensor | None] = {}
        notes: tuple[str, ...] = ()
        counting = conditions if number is not None else replace(conditions, losses={})
        look = Look(counting, batch, number or 0)
        if differentiating:
            require_gradients(model, [tensor for same in followed.values() for tensor in same])
            found = loss_gradients(model, batch, look.noted_loss, followed, look.where)
            if not total.states:
                notes = _notes_on_missing(model, batch, differentiating, groups, followed, found)
        seen = Observed(groups, parameters, filled(found, parameters), batch.samples, seed, look)
        with blaming(model, batch), torch.no_grad():
            states = {name: method.observe(seen) for name, method in methods.items()}
        if number is not None:
            loss, counted = conditions.losses.pop(number, (0.0, 0))
            own = Observations(states, Fraction(loss) * counted, counted, 1, batch.samples, notes, number)
            total = total.merged(own)
        del found, seen, look  # or two sets of gradients are alive in the next backward pass
    return total


def _detached(twins: Twins) -> dict[str, Tensor]:
    return {name: same[0].detach() for name, same in twins.items()}


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
    silent = {name: names for name, names in read_by.items() if names and names <= set(missing)}
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
    notes = (*about.notes, *(method.notes(total) if isinstance(method, Noting) else ()))
    return Scores(replace(about, method=name, arguments=arguments_of(method), notes=notes), by_group)


def _with_note_on_zeros(scores: Scores) -> Scores:
    """Say which groups have no unit that scores more than another, because all score 0."""
    zero = [group for group, values in scores.by_group.items() if not values.any()]
    if not zero:
        return scores
    share = f"{len(zero)} of {len(scores.by_group)} groups"
    note = f"{share} score 0 throughout: {some(zero)}; ranked by position."
    return replace(scores, about=replace(scores.about, notes=(*scores.about.notes, note)))
