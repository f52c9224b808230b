"""The wishes of `prune --steps` and of `train` -> a schedule that carries them out, and what it came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prunecli.pipeline.deciding import check_prunable
from prunecli.pipeline.keeping import Job
from prunecli.pipeline.limits import constraints_of, limit_of
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened, parents_of
from prunecli.pipeline.running import Place
from prunecli.pipeline.scoring import arguments_of_method
from prunecli.pipeline.settings import Choices, Importance
from prunecli.pipeline.telling import Cut
from prunecli.pipeline.training import Trained, run_training
from prunecli.plan import Plan, Rank, Scope
from prunecli.report import Notice
from prunecli.training import Schedule, Wishes, build_schedule


def prune_in_steps(opened: Opened, folder: Path, choices: Choices, place: Place, listener: Listener) -> Cut:
    """Let units leave step by step while the model trains (METHODS 7.1).

    Raises:
        UsageError: the steps cannot meet the budget.
        KeyboardInterrupt: somebody stopped it; `--resume` goes on.
    """
    check_prunable(opened)
    steps = choices.steps
    arguments: dict[str, object] = {
        "every": steps.prune_every,
        "steps": steps.steps if steps.step_units is None else 0,
        "momentum": steps.score_momentum,
        "fixed": steps.fixed_criterion,
        "tunes": steps.tune,
        "physical_every": steps.physical_every,
    }
    if steps.step_units is not None:
        arguments["units"] = steps.step_units
    if steps.max_loss is not None:
        arguments["max_loss"] = steps.max_loss
    return run_schedule(opened, "iterative", arguments, folder, choices, place, listener)


def run_schedule(
    opened: Opened,
    name: str,
    arguments: Mapping[str, object],
    folder: Path,
    choices: Choices,
    place: Place,
    listener: Listener,
) -> Cut:
    """Train a model under a schedule, and return what is left of it.

    Raises:
        UsageError: the schedule is unknown, or cannot do what is asked.
        KeyboardInterrupt: somebody stopped it; `--resume` goes on.
    """
    schedule = build_schedule(name, arguments, _wishes(choices))
    job = Job(
        opened,
        schedule,
        choices.recipe,
        choices.samples,
        choices.machine,
        choices.run,
        choices.source,
        folder,
    )
    trained = run_training(job, place, listener)
    plan = _plan_of(opened, trained, schedule) if schedule.info.prunes else None
    notices = tuple(_notices(trained, plan))
    for notice in notices:
        listener.warn(notice.text)
    masks = {name: mask.cpu() for name, mask in trained.training.result_masks.items()}
    return Cut(opened, plan, None, trained.model, trained.facts, notices, masks=masks or None)


def _notices(trained: Trained, plan: Plan | None) -> Iterator[Notice]:
    """Yield what the user should know of a run before trusting its result."""
    if plan is not None and trained.facts.figures.get("budget_met") is False:
        left = f"{plan.kept_count:,} of {plan.unit_count:,} units are left"
        text = (
            f"The budget `{plan.budget}` was not met: {left}. Raise `--epochs`, or prune more at each step."
        )
        yield Notice("budget", text)


def _wishes(choices: Choices) -> Wishes:
    budget = choices.budget
    has_budget = budget.keep is not None or budget.target is not None
    method = choices.importance.method
    is_chosen = "method" in choices.given or method != Importance().method
    return Wishes(
        budget=limit_of(budget) if has_budget else None,
        scope=Scope(budget.scope),
        rank=None if budget.rank == "auto" else Rank(budget.rank),
        constraints=constraints_of(budget),
        method=method[0] if is_chosen else None,
        method_args=arguments_of_method(choices.importance),
        seed=choices.machine.seed,
    )


def _plan_of(opened: Opened, trained: Trained, schedule: Schedule) -> Plan:
    """Return what the schedule decided, as a plan of the dense model."""
    wishes, kept = schedule.wishes, trained.training.kept
    return Plan(
        keep={name: tuple(stays.nonzero()[0].tolist()) for name, stays in kept.items()},
        widths={name: len(stays) for name, stays in kept.items()},
        method=schedule.method or schedule.info.name,
        scope=wishes.scope,
        rank=wishes.order,
        budget=wishes.budget.text if wishes.budget is not None else "",
        constraints=wishes.constraints,
        seed=wishes.seed,
        digests=parents_of(opened),
    )
