"""Scores and a budget, or a plan made elsewhere -> the plan that surgery carries out."""

from __future__ import annotations

from pathlib import Path

from prunecli.budget import Budget as Limit
from prunecli.budget import check_reach, make_plan, parse_amount
from prunecli.errors import InputError, NotPrunableError, UsageError
from prunecli.importance import Gate, Scores
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened, parents_of
from prunecli.pipeline.recovering import check_recovery
from prunecli.pipeline.running import Place, parse_bytes
from prunecli.pipeline.scoring import check_importance, measure_scores
from prunecli.pipeline.settings import Budget, Choices
from prunecli.plan import Constraints, Plan, Rank, Scope


def check_choices(choices: Choices) -> None:
    """Refuse choices that contradict each other, before any file is opened.

    Raises:
        UsageError: naming the two.
    """
    budget, decision = choices.budget, choices.decision
    check_recovery(choices)
    _check_steps(choices)
    parse_bytes(choices.machine.max_memory, "--max-memory")
    given = [f"--{name}" for name in ("keep", "target") if getattr(budget, name) is not None]
    if decision.apply is not None:
        for option in (*given, *(["--scores"] if decision.scores else [])):
            raise UsageError(f"`--apply` brings its own decision; leave out `{option}`.")
        return
    if not given:
        raise UsageError("Say how much may stay: `--keep 0.5`, `--target macs=0.5`, or `--apply PLAN`.")
    if len(given) > 1:
        raise UsageError("`--keep` and `--target` are two budgets; give one of them.")
    if len(choices.importance.method) != 1:
        raise UsageError("`prune` ranks by one `--method`; `prunecli score` compares several.")
    check_importance(choices.importance)
    limit_of(budget)
    constraints_of(budget)


def _check_steps(choices: Choices) -> None:
    """Refuse what does not go together with units that leave while the model trains."""
    if not choices.steps.are_wanted:
        return
    option = "--steps" if choices.steps.step_units is None else "--step-units"
    decision, recovery = choices.decision, choices.recovery
    refused = {
        "--apply": (decision.apply is not None, "what leaves is decided while training"),
        "--scores": (decision.scores is not None, "units are scored while training"),
        "--dry-run": (decision.dry_run, "what leaves shows only while training"),
        "--reconstruct": (recovery.reconstruct, "training moves layers away from the dense ones"),
        "--recalibrate-bn": (recovery.recalibrate_bn, "training measures these statistics anyway"),
    }
    for name, (is_given, why) in refused.items():
        if is_given:
            remedy = "Say `--no-reconstruct`" if name == "--reconstruct" else f"Leave out `{name}`"
            raise UsageError(f"`{name}` and `{option}`: {why}. {remedy}.")


def decide(opened: Opened, choices: Choices, place: Place, listener: Listener) -> tuple[Plan, Scores | None]:
    """Return the plan, and the scores it follows; None where it was made elsewhere.

    Raises:
        InputError: the plan or the scores are of another network.
        BudgetError: no plan meets the budget under the constraints.
    """
    decision, budget = choices.decision, choices.budget
    if decision.apply is not None:
        plan = Plan.from_json(_read(decision.apply).decode("utf-8", "replace"), Path(decision.apply).name)
        plan.check(opened.structure)
        return plan, None
    check_prunable(opened)
    limit, constraints = limit_of(budget), constraints_of(budget)
    reachable = check_reach(opened.structure, limit, constraints)
    listener.detail(f"the budget {limit.text} can be met: {reachable.describe()}")
    scores = _scores(opened, choices, place, listener)
    plan = make_plan(
        opened.structure,
        scores,
        budget=limit,
        scope=Scope(budget.scope),
        rank=None if budget.rank == "auto" else Rank(budget.rank),
        constraints=constraints,
        digests={**parents_of(opened), **_digest_of_sample(scores)},
    )
    return plan, scores


def check_prunable(opened: Opened) -> None:
    """Make sure that there is something to cut.

    Raises:
        NotPrunableError: there is nothing.
    """
    if not opened.structure.groups:
        raise NotPrunableError(
            f"`{opened.name}` has no units that can be cut; `prunecli inspect` says why each layer is frozen."
        )


def _digest_of_sample(scores: Scores) -> dict[str, str]:
    about = scores.about
    return {about.sample: about.sample_digest} if about.sample and about.sample_digest else {}


def _scores(opened: Opened, choices: Choices, place: Place, listener: Listener) -> Scores:
    if choices.decision.scores is not None:
        scores = Scores.from_bytes(_read(choices.decision.scores), Path(choices.decision.scores).name)
        if scores.about.gate == Gate.BEFORE_BN.value:
            raise InputError(
                f"`{choices.decision.scores}`: these scores are of gates before the normalisations (`--gate "
                "before-bn`), and say nothing of a cut, which takes the normalisation along. Score again."
            )
        return scores
    measured = measure_scores(opened, choices.importance, choices.samples, choices.machine, place, listener)
    return measured[choices.importance.method[0]]


def limit_of(budget: Budget) -> Limit:
    """Return what may stay."""
    return Limit.parse(f"keep={budget.keep}" if budget.keep is not None else str(budget.target))


def constraints_of(budget: Budget) -> Constraints:
    """Return what else a plan must respect."""
    return Constraints(
        min_keep=parse_amount(budget.min_keep, "--min-keep"),
        round_to=budget.round_to,
        ignore=budget.ignore,
        keep_layer=dict(map(_kept_layer, budget.keep_layer)),
    )


def _kept_layer(text: str) -> tuple[str, int | float]:
    pattern, equals, amount = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"`--keep-layer {text}`: write PATTERN=SHARE, such as `layer1.*=0.8`.")
    return pattern, parse_amount(amount, f"--keep-layer {pattern}=")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}.") from None
