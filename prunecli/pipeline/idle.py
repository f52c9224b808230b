"""Options that were given but would do nothing beside the others -> an error, before any file is opened.

What Python code passes is not judged: there nobody can tell a value that was chosen from one that is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from prunecli.errors import UsageError
from prunecli.importance import Gate, Granularity, find_method
from prunecli.importance.registry import Needs
from prunecli.pipeline.presets import find_preset
from prunecli.pipeline.scoring import ORACLE
from prunecli.pipeline.settings import Choices, Importance, Run, Steps, Study, Weights
from prunecli.pipeline.weighing import prunes_weights
from prunecli.recipe import Recipe
from prunecli.training import find_schedule

_SCORING = ("method", "method_arg", "fallback", "score_bn")
_PLANNING = ("scope", "rank", "min_keep", "round_to", "ignore", "keep_layer")
_WITH_GATES = Needs.GRADIENTS | Needs.GATES | Needs.CURVATURE | Needs.LOSSES


def refuse_idle(choices: Choices, asked: Choices) -> None:
    """Refuse options of `prune` that would do nothing.

    Args:
        choices: What will be done.
        asked: The same before a preset was filled in.

    Raises:
        UsageError: Naming the option.
    """
    decision, recovery, given = choices.decision, choices.recovery, choices.given
    refuse_idle_granularity(choices)
    _refuse_idle_sample(choices)
    if decision.apply is not None:
        _refuse(given, (*_SCORING, *_PLANNING), "beside `--apply`, which brings its own decision")
    if decision.scores is not None:
        _refuse(given, _SCORING, "beside `--scores`, which are measured already")
    if not (recovery.recalibrate_bn or recovery.reconstruct):
        _refuse(given, ("recovery_samples",), "without `--reconstruct` or `--recalibrate-bn`")
    if choices.steps.are_wanted:
        if "step_units" in given:
            _refuse(given, ("steps",), "beside `--step-units`, which says how much leaves each time")
        idle = ("data", "samples", "fallback", "score_bn")
        _refuse(given, idle, "beside `--steps`: units are scored while the model trains")
        refuse_idle_recipe(choices.recipe, given, choices.steps.tune)
    else:
        names = [item.name for group in (Steps, Recipe, Run) for item in fields(group)]
        _refuse(given, (*names, "train_data"), "without `--steps` or `--step-units`")
    if choices == asked:
        _refuse(given, ("preset",), "beside settings that leave nothing to it")


def refuse_idle_granularity(choices: Choices) -> None:
    """Refuse options of weights where units are pruned, and of units where weights are.

    Raises:
        UsageError: Naming the option.
    """
    if prunes_weights(choices.importance):
        _refuse(choices.given, ("rank", "round_to", "fallback"), "with `--granularity weight`")
    else:
        names = ("ratio", *(item.name for item in fields(Weights)))
        _refuse(choices.given, names, "without `--granularity weight`", "Add that, or leave it out.")


def _refuse_idle_sample(choices: Choices) -> None:
    """Refuse options of a sample that nobody looks at when weights are scored."""
    name = choices.importance.method[0]
    if prunes_weights(choices.importance) and not find_method(name, Granularity.WEIGHT).needs_data:
        of_sample = ("score_bn", "score_batches", "samples", "data")
        _refuse(choices.given, of_sample, f"with `--method {name}`, which looks at no data")


def refuse_idle_in_training(choices: Choices) -> None:
    """Refuse options of `train` that would do nothing.

    Raises:
        UsageError: Naming the option.
    """
    name = choices.directed.schedule
    refuse_idle_recipe(choices.recipe, choices.given)
    refuse_idle_granularity(choices)
    _refuse_idle_sample(choices)
    _refuse_foreign_preset(choices, ("importance", "budget", "recipe", "samples", "directed"), "train")
    if prunes_weights(choices.importance):
        _refuse_pruning_schedule(name)
        return
    _refuse(choices.given, find_schedule(name).idle, f"with `--schedule {name}`, which has rules of its own")
    if not find_schedule(name).prunes:
        ranking = ("keep", "target", "method", "method_arg", *_PLANNING)
        _refuse(choices.given, ranking, f"with `--schedule {name}`, under which no unit leaves")


def _refuse_pruning_schedule(name: str) -> None:
    """Refuse a schedule that prunes by itself beside weights that are masked before training."""
    if find_schedule(name).prunes:
        raise UsageError(
            f"`--granularity weight` masks weights before training, `--schedule {name}` prunes meanwhile. "
            "Leave out one of them."
        )


def refuse_idle_recipe(recipe: Recipe, given: frozenset[str], tunes: bool = True) -> None:
    """Refuse options of training that would do nothing beside the others.

    Args:
        recipe: How the model is trained.
        given: The options that were given.
        tunes: Whether it is trained at all.

    Raises:
        UsageError: Naming the option.
    """
    if not tunes:
        _refuse(given, [item.name for item in fields(Recipe)], "with `--no-tune`: nothing is trained")
    if recipe.lr_schedule != "step":
        _refuse(given, ("lr_step", "lr_gamma"), "without `--lr-schedule step`")
    if recipe.optimizer == "sgd":
        _refuse(given, ("second_beta",), "with `--optimizer sgd`")
    else:
        _refuse(given, ("nesterov",), f"with `--optimizer {recipe.optimizer}`")
    if recipe.distill is None:
        _refuse(given, ("distill_temperature", "distill_weight"), "without `--distill`")


def _refuse_foreign_preset(choices: Choices, groups: Iterable[str], command: str) -> None:
    """Refuse a preset that is made for another command."""
    name = choices.importance.preset
    foreign = set(find_preset(name)) - set(groups)
    if foreign:
        raise UsageError(f"`--preset {name}` is not for `{command}`: it sets {', '.join(sorted(foreign))}.")


def refuse_idle_in_study(
    importance: Importance, asked: Importance, study: Study, given: frozenset[str]
) -> None:
    """Refuse options of `score` that would do nothing.

    Args:
        importance: What will be measured.
        asked: The same before a preset was filled in.
        study: What it is compared with, and where gates stand.
        given: The options that were given.

    Raises:
        UsageError: Naming the option.
    """
    if importance == asked:
        _refuse(given, ("preset",), "in `score` beside settings that leave nothing to it")
    if prunes_weights(importance):
        _refuse(given, ("fallback", "gate", "shard"), "with `--granularity weight`")
        return
    others = [name for name in (importance.fallback, study.against) if name not in (None, ORACLE)]
    names = [*importance.method, *map(str, others)]
    has_gates = any(find_method(name).needs & _WITH_GATES for name in names)
    if study.gate == Gate.BEFORE_BN.value and not has_gates:
        _refuse(given, ("gate",), f"for methods without gates, such as `{names[0]}`")


def _refuse(given: frozenset[str], names: Iterable[str], why: str, remedy: str = "Leave it out.") -> None:
    for name in names:
        if name in given:
            raise UsageError(f"`--{name.replace('_', '-')}` does nothing {why}. {remedy}")
