"""A model, its sample and a budget -> masks over its weights; and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from prunecli.budget import parse_amount
from prunecli.errors import NotPrunableError, UsageError
from prunecli.export.masks import to_record
from prunecli.export.record import PrunedRecord
from prunecli.graph.copying import clean_copy, named_tensors
from prunecli.pipeline.limits import kept_layers
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened, open_start, parents_of
from prunecli.pipeline.presets import with_settings
from prunecli.pipeline.running import Place
from prunecli.pipeline.scoring import annotated
from prunecli.pipeline.settings import Budget, Choices
from prunecli.pipeline.telling import Cut
from prunecli.pipeline.weighing import check_weighing, lender_of, looks_at_gradients, prunes_weights
from prunecli.plan import Scope
from prunecli.report import Notice
from prunecli.surgery import apply_plan
from prunecli.weights import (
    Masking,
    MaskRule,
    RatioBase,
    Selection,
    WeightBudget,
    choose_masks,
)
from prunecli.weights.collapse import collapse
from prunecli.weights.masked import digest_of_masks, with_masks
from prunecli.weights.patterns import Pattern

_USUAL: Mapping[str, Mapping[str, Any]] = {"importance": {"method": ("magnitude",)}}
"""What single weights are pruned by where the user sets nothing; units have other defaults."""

_XAVIER = ("snip", "snip-grad")
"""Methods whose source starts from Xavier's initialisation."""


def with_weight_settings(choices: Choices) -> Choices:
    """Return the choices with what pruning of single weights usually goes by, where the user set nothing.

    A new model has no running statistics worth the name: gradients there are those of training.
    """
    if not prunes_weights(choices.importance):
        return choices
    choices = with_settings(choices, _USUAL, choices.given)
    if choices.start.at_init and looks_at_gradients(choices.importance):
        choices = with_settings(choices, {"importance": {"score_bn": "train"}}, choices.given)
    return choices


def check_masking(choices: Choices) -> None:
    """Refuse a budget, a method or a pattern for weights that makes no sense, before any file is opened.

    Raises:
        UsageError: naming it.
    """
    budget = choices.budget
    if budget.target is not None:
        raise UsageError("`--target` is a budget of units. Say `--ratio 32`, or `--keep 0.1`, for weights.")
    if budget.ratio is not None and budget.keep is not None:
        raise UsageError("`--keep` and `--ratio` are two budgets; give one of them.")
    _refuse_unit_choices(choices)
    if len(choices.importance.method) != 1:
        raise UsageError("Weights are masked by one `--method`; `prunecli sweep` compares several.")
    check_weighing(choices.importance)
    budget_of(choices)
    selection_of(choices)


def decide_masks(opened: Opened, choices: Choices, place: Place, listener: Listener) -> Masking:
    """Return which weights stay.

    Raises:
        NotPrunableError: the model has no weights that can be pruned; under `--no-collapse`, a layer would
            have none left.
        BudgetError: the budget cannot be met.
        DataError: the method looks at data, and there is none.
        ScoreError: the model fails, or a score is not finite.
    """
    method = choices.importance.method[0]
    lender, sample = lender_of(opened, choices, method, place, listener)
    masking = choose_masks(lender, budget_of(choices), selection_of(choices))
    place.processes.agree({"choice of weights": digest_of_masks(masking.masks)})
    masking = replace(masking, about=annotated(masking.about, sample, opened))
    if masking.collapsed and choices.weights.no_collapse:
        raise NotPrunableError(
            f"`--no-collapse`: no weight would be left in {_listed(masking.collapsed)}. Keep more, use "
            "`--min-keep`, `--scope layer`, or a method that spares small layers (`synflow`, `lamp`)."
        )
    return masking


def mask_at_once(opened: Opened, choices: Choices, place: Place, listener: Listener) -> Cut:
    """Mask the weights of a model, and warn where a layer has none left."""
    masking = decide_masks(opened, choices, place, listener)
    _warn(masking, listener)
    masked = with_masks(opened.model, masking.masks)
    masks = {**(opened.masks or {}), **masking.masks}  # what was masked before stays so, prunable now or not
    cut = Cut(opened, None, None, masked, masking=masking, masks=masks, notices=_notices(masking))
    return _without_empty_units(cut) if choices.weights.collapse_to_units else cut


def _without_empty_units(cut: Cut) -> Cut:
    """Take out the units that masks empty, and say what goes with them."""
    opened, about = cut.opened, cut.about
    assert about is not None and cut.masks is not None  # noqa: PT018 (one thought: weights were masked)
    found = collapse(
        cut.smaller,
        opened.structure,
        cut.masks,
        opened.example,
        method=about.method,
        seed=about.seed,
        digests=parents_of(opened),
    )
    notices = [*cut.notices, *(Notice("collapse-to-units", note) for note in found.notes)]
    if not found.gone:
        notices.append(Notice("collapse-to-units", "No unit is empty: the network is as large as it was."))
    if found.constant_count:
        text = (
            f"{found.constant_count:,} of the {found.gone:,} units that leave put out a constant (bias, "
            "shift of a normalisation), which goes with them. Fine-tune."
        )
        notices.append(Notice("constants", text))
    smaller = apply_plan(cut.smaller, opened.structure, found.plan)
    return replace(cut, plan=found.plan, smaller=smaller, masks=found.masks, notices=tuple(notices))


def masked_start(
    opened: Opened, choices: Choices, place: Place, listener: Listener
) -> tuple[Opened, Masking]:
    """Return a new model with its weights masked before it is trained, and how.

    Raises:
        UsageError: units are to leave with them, which is for later.
    """
    if choices.weights.collapse_to_units:
        raise UsageError(
            "`--collapse-to-units` comes after training: run `prunecli prune NAME.trained.safetensors "
            "--granularity weight --collapse-to-units` then."
        )
    masking = decide_masks(opened, choices, place, listener)
    _warn(masking, listener)
    masked = with_masks(opened.model, masking.masks)
    record = PrunedRecord(masks=to_record(masking.masks, named_tensors(masked)))
    return replace(opened, model=masked, record=record), masking


def _notices(masking: Masking) -> tuple[Notice, ...]:
    """Say where a file had fewer weights than were asked for, so that nothing was masked."""
    if masking.kept >= masking.count or masking.budget.ratio == 1:
        return ()
    left = f"{masking.kept:,} of {masking.prunable:,} weights"
    text = f"Only {left} were left before, fewer than `{masking.budget.text}` keeps: nothing more was masked."
    return (Notice("masked-before", text),)


def _warn(masking: Masking, listener: Listener) -> None:
    if masking.collapsed:
        listener.warn(
            f"layer collapse: no weight is left in {_listed(masking.collapsed)}; nothing passes through"
        )


def budget_of(choices: Choices) -> WeightBudget:
    """Return how many weights stay."""
    budget, base = choices.budget, RatioBase(choices.weights.ratio_base)
    if choices.weights.collapse_to_units and not (budget.is_given or choices.weights.pattern):
        return WeightBudget(Fraction(1), base)  # what is masked already is enough
    return WeightBudget.parse(budget.ratio, budget.keep, base, _pattern(choices))


def selection_of(choices: Choices) -> Selection:
    """Return among which weights the lowest are looked for."""
    budget, weights = choices.budget, choices.weights
    return Selection(
        Scope(budget.scope),
        MaskRule(weights.mask_rule),
        _least(budget),
        kept_layers(budget, "weights"),
        _pattern(choices),
    )


def _pattern(choices: Choices) -> Pattern | None:
    return Pattern.parse(choices.weights.pattern) if choices.weights.pattern is not None else None


def open_asked(checkpoint: str | None, choices: Choices, listener: Listener) -> Opened:
    """Open a checkpoint, or build a new model with the weights asked for.

    Raises:
        UsageError: both are wanted, or neither.
        SpecError, CheckpointError: as in `open_model` and `open_new`.
    """
    start, seed = choices.start, choices.machine.seed
    opened = open_start(checkpoint, choices.source, choices.samples, start, seed, listener)
    return with_init(opened, choices) if start.at_init else opened


def with_init(opened: Opened, choices: Choices) -> Opened:
    """Return a new model with the weights asked for; another random draw than its code's only if so."""
    init, importance = choices.start.init, choices.importance
    wants_xavier = prunes_weights(importance) and importance.method[0] in _XAVIER
    is_xavier = init == "xavier" or (init == "auto" and wants_xavier)
    return replace(opened, model=_xavier(opened.model, choices.machine.seed)) if is_xavier else opened


def _refuse_unit_choices(choices: Choices) -> None:
    """Refuse what concerns whole units."""
    decision, recovery = choices.decision, choices.recovery
    refused = {
        "--apply": (decision.apply is not None, "a plan is of units"),
        "--plan": (decision.plan is not None, "a plan is of units; the file itself holds the masks"),
        "--scores": (decision.scores is not None, "only scores of units can be taken from a file"),
        "--steps": (choices.steps.are_wanted, "units leave step by step, weights at once"),
        "--reconstruct": (recovery.reconstruct, "re-solved layers have no zeros; use `prunecli finetune`"),
        "--recalibrate-bn": (recovery.recalibrate_bn, "`prunecli finetune` measures these statistics anew"),
    }
    for option, (is_given, why) in refused.items():
        if is_given:
            raise UsageError(f"`{option}` and `--granularity weight`: {why}. Leave out one of them.")
    if choices.weights.score_batches is not None and choices.samples.samples is not None:
        raise UsageError("`--score-batches` and `--samples` both say how many samples; give one of them.")


def _least(budget: Budget) -> int | float:
    if budget.min_keep is None or budget.min_keep == "0":
        return 0
    return parse_amount(budget.min_keep, "--min-keep", "weights")


def _xavier(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose convolutions and linear layers have weights from Xavier's normal distribution."""
    copied = clean_copy(model)
    generator = torch.Generator().manual_seed(seed)
    for module in copied.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            drawn = nn.init.xavier_normal_(torch.empty_like(module.weight), generator=generator)
            with torch.no_grad():
                if is_parametrized(module, "weight"):  # what is computed cannot be written to, but assigned
                    module.weight = drawn
                else:
                    module.weight.copy_(drawn)
    return copied


def _listed(parameters: tuple[str, ...]) -> str:
    """Name the layers that parameters belong to, the first four of them."""
    names = [parameter.rpartition(".")[0] or parameter for parameter in parameters]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"`{name}`" for name in names[:4]) + more
