"""Scores and a budget, or a plan made elsewhere -> the plan that surgery carries out."""

from __future__ import annotations

from pathlib import Path

from prunecli.budget import check_reach, make_plan
from prunecli.errors import InputError, NotPrunableError, UsageError
from prunecli.export.unfinished import finish_renames
from prunecli.give_back import give_back
from prunecli.graph.cutting import slice_masks
from prunecli.importance import Gate, Granularity, Scores
from prunecli.pipeline.limits import constraints_of, limit_of
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.masking import check_masking
from prunecli.pipeline.opening import Opened, parents_of
from prunecli.pipeline.recovering import check_recovery
from prunecli.pipeline.running import Place, parse_bytes
from prunecli.pipeline.scoring import check_importance, measure_scores
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.telling import Cut
from prunecli.pipeline.weighing import prunes_weights
from prunecli.plan import Plan, Rank, Scope
from prunecli.surgery import apply_plan
from prunecli.whole_file import read_whole


def check_choices(choices: Choices) -> None:
    """Refuse choices that contradict each other, before any file is opened.

    Raises:
        UsageError: naming the two.
    """
    budget, decision = choices.budget, choices.decision
    parse_bytes(choices.machine.max_memory, "--max-memory")
    if prunes_weights(choices.importance):
        check_masking(choices)
        return
    check_recovery(choices)
    _check_steps(choices)
    if budget.ratio is not None:
        raise UsageError(
            f"`--ratio {budget.ratio}` is a budget of single weights: add `--granularity weight`. Of units, "
            "say `--keep 0.5` or `--target macs=0.5`."
        )
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
        PeerError: another of the processes that share the work failed.
    """
    decision, budget = choices.decision, choices.budget
    listener.progress("finding groups", 0, None)
    if decision.apply is not None:
        plan = Plan.from_json(_read(decision.apply).decode("utf-8", "replace"), Path(decision.apply).name)
        plan.check(opened.structure)
        place.processes.agree({"plan": plan.to_json()})
        return plan, None
    check_prunable(opened)
    limit, constraints = limit_of(budget), constraints_of(budget)
    reachable = check_reach(opened.structure, limit, constraints)
    listener.detail(f"the budget {limit.text} can be met: {reachable.describe()}")
    scores = _scores(opened, choices, place, listener)
    listener.progress("planning", 0, None)
    plan = make_plan(
        opened.structure,
        scores,
        budget=limit,
        scope=Scope(budget.scope),
        rank=None if budget.rank == "auto" else Rank(budget.rank),
        constraints=constraints,
        digests={**parents_of(opened), **_digest_of_sample(scores)},
    )
    place.processes.agree({"plan": plan.to_json()})
    return plan, scores


def cut_at_once(opened: Opened, choices: Choices, place: Place, listener: Listener) -> Cut:
    """Take out the units that the plan does not keep; of weights that are masked, what stays is so on.

    Raises:
        InputError: the plan or the scores are of another network.
        BudgetError: no plan meets the budget under the constraints.
    """
    plan, scores = decide(opened, choices, place, listener)
    give_back()
    listener.progress("cutting", 0, None)
    smaller = apply_plan(opened.model, opened.structure, plan)
    masks = slice_masks(opened.masks, opened.structure, plan.kept()) if opened.masks else None
    return Cut(opened, plan, scores, smaller, masks=masks)


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
        if scores.about.granularity != Granularity.UNIT.value:
            raise InputError(f"`{choices.decision.scores}` holds scores of weights, and units are to go.")
        if scores.about.gate == Gate.BEFORE_BN.value:
            raise InputError(
                f"`{choices.decision.scores}`: these scores are of gates before the normalisations (`--gate "
                "before-bn`), and say nothing of a cut, which takes the normalisation along. Score again."
            )
        return scores
    listener.progress("scoring", 0, None)
    measured = measure_scores(opened, choices.importance, choices.samples, choices.machine, place, listener)
    return measured[choices.importance.method[0]]


def _read(path: str) -> bytes:
    finish_renames(Path(path).parent)
    try:
        return read_whole(path, None)
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}.") from None
