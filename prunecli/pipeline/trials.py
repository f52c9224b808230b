"""One trial of a sweep: a method, a budget and a seed -> what is left, and how good it is; kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path

from torch import nn

from prunecli.costs import describe
from prunecli.errors import CheckpointError, NotPrunableError, OutputError, PruneError, UsageError
from prunecli.export.files import write_file
from prunecli.export.masks import to_record
from prunecli.export.record import PrunedRecord
from prunecli.graph.copying import named_tensors
from prunecli.importance import Scores
from prunecli.pipeline.deciding import check_prunable, cut_at_once
from prunecli.pipeline.keeping import STATE, Job
from prunecli.pipeline.limits import limit_of
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.masking import decide_masks, open_asked
from prunecli.pipeline.measuring import Judge
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.recovering import recover
from prunecli.pipeline.running import Place, running_on
from prunecli.pipeline.scoring import measure_scores
from prunecli.pipeline.settings import Choices, Decision, Machine, Run, Samples, Source, Start
from prunecli.pipeline.telling import with_lasting_masks
from prunecli.pipeline.training import run_training
from prunecli.pipeline.weighing import prunes_weights
from prunecli.report import Accuracy, Change, ModelFacts, mask_facts
from prunecli.report.sweep import TrialFigures
from prunecli.strict_json import Json, from_plain, to_plain
from prunecli.training import Wishes, build_schedule
from prunecli.weights import prunable_weights
from prunecli.weights.masked import kept_counts, with_masks
from prunecli.whole_file import read_whole

_VERSION = 1
_SPEED = ("workers", "distill")
"""Of a recipe: what changes nothing but speed, and what the ground knows by its content."""


@dataclass(frozen=True)
class Trial:
    """Everything that one trial is told. It can be sent to another process."""

    checkpoint: str | None
    """None: it starts from a new model."""
    choices: Choices
    """With one method, one budget and one seed."""
    ratio: float
    """The compression that the budget asks for."""
    ground: str
    """A digest of what all trials of a sweep stand on: model, data, code, versions."""

    @property
    def is_dense(self) -> bool:
        """Whether nothing is to go, so that the method does not matter."""
        return self.ratio <= 1

    @property
    def label(self) -> str:
        """What it is, for people."""
        importance, budget = self.choices.importance, self.choices.budget
        scope = "" if budget.scope == "global" else f"@{budget.scope}"
        name = "dense" if self.is_dense else f"{importance.method[0]}{scope} {budget_text(self.choices)}"
        return f"{name}, seed {self.choices.machine.seed}"

    @cached_property
    def key(self) -> str:
        """A digest of everything that the result depends on."""
        choices = self.choices
        recipe = {
            item.name: getattr(choices.recipe, item.name)
            for item in fields(choices.recipe)
            if item.name not in _SPEED
        }
        conditions: Json = {
            **self._of_scores,
            "ratio": "dense" if self.is_dense else budget_text(choices),
            "budget": None if self.is_dense else replace(choices.budget, keep=None, target=None, ratio=None),
            "ignore": choices.budget.ignore,
            "recovery": choices.recovery,
            "recipe": recipe if choices.recipe.epochs else None,
        }
        return digest_of(conditions)

    @property
    def scores_key(self) -> str:
        """A digest of everything that scores of units depend on."""
        return digest_of(self._of_scores)

    @property
    def _of_scores(self) -> dict[str, Json]:
        choices = self.choices
        samples, machine = choices.samples, choices.machine
        return {
            "ground": self.ground,
            "seed": machine.seed,
            "dtype": machine.dtype,
            "memory": machine.max_memory,
            "start": choices.start,
            "importance": choices.importance.granularity if self.is_dense else choices.importance,
            "weights": choices.weights,
            "samples": samples.samples,
            "batch_size": samples.batch_size,
        }


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: figures, or why there are none."""

    figures: TrialFigures | None = None
    error: str | None = None


def digest_of(conditions: Json) -> str:
    """Return a digest of plain values and dataclasses of them."""
    return hashlib.sha256(json.dumps(to_plain(conditions), sort_keys=True).encode()).hexdigest()


def budget_text(choices: Choices) -> str:
    """Return the budget as users write it.

    >>> from prunecli.pipeline.settings import Budget
    >>> budget_text(Choices(budget=Budget(ratio="32")))
    'ratio=32'
    """
    budget = choices.budget
    named = (("ratio", budget.ratio), ("keep", budget.keep))
    return next((f"{name}={text}" for name, text in named if text is not None), str(budget.target))


def find_outcome(trial: Trial, folder: Path) -> Outcome | None:
    """Return what a trial came to earlier; None if it was not run yet, or its file is damaged."""
    try:
        data = json.loads(read_whole(folder / f"{trial.key}.json"))
        if data.pop("version") != _VERSION:
            return None
        data.pop("trial")
        return from_plain(Outcome, data)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def run_trial(trial: Trial, folder: Path, listener: Listener | None = None) -> Outcome:
    """Run a trial, and keep what it came to in the folder.

    A trial that cannot be carried out as asked is an outcome too; one that failed for another reason is not
    kept, so that it is tried again.

    Raises:
        UsageError: it makes no sense.
        OutputError: the folder cannot be written.
        KeyboardInterrupt: somebody stopped it. Where it trains, it goes on from there.
    """
    try:
        outcome = Outcome(_run(trial, folder, listener or Silent()))
    except (UsageError, OutputError):
        raise
    except NotPrunableError as error:
        outcome = Outcome(error=str(error))
    except PruneError as error:
        return Outcome(error=str(error))
    kept = {"version": _VERSION, "trial": trial.label, **to_plain(outcome)}
    write_file(folder / f"{trial.key}.json", (json.dumps(kept, indent=2) + "\n").encode(), force=True)
    shutil.rmtree(folder / f"{trial.key}.run", ignore_errors=True)
    return outcome


def forget_models() -> None:
    """Give back the memory of the model that the last trial ran on."""
    _bench.cache_clear()


def _run(trial: Trial, folder: Path, listener: Listener) -> TrialFigures:
    choices = trial.choices
    seed = choices.machine.seed if choices.start.at_init else None
    bench = _bench(trial.ground, trial.checkpoint, choices.source, choices.samples, choices.start, seed)
    with running_on(choices.machine, Silent()) as place:
        left = _left(bench, trial, folder, place, listener)
        place = place.in_full if choices.recipe.epochs else place
        model = left.opened.model
        if choices.recipe.epochs:
            model = _trained(left.opened, trial, folder / f"{trial.key}.run", place, listener)
        accuracy = bench.judge(choices.machine, place).accuracy(model, "accuracy")
    accuracy = accuracy or Accuracy(0)
    return replace(
        left.figures,
        samples=accuracy.samples,
        loss=accuracy.loss,
        top1=accuracy.top1,
        top5=accuracy.top5,
    )


@dataclass(frozen=True, eq=False)
class _Bench:
    """A model on which several trials run, one after the other."""

    opened: Opened
    samples: Samples
    judges: dict[tuple[Machine, Place], Judge] = field(default_factory=dict)
    """Which keep the test data open."""

    @cached_property
    def facts(self) -> ModelFacts:
        return describe(self.opened.model, *self.opened.example)

    def judge(self, machine: Machine, place: Place) -> Judge:
        if (machine, place) not in self.judges:
            self.judges.clear()
            self.judges[machine, place] = Judge(self.opened, self.samples, machine, place, Silent())
        return self.judges[machine, place]


@lru_cache(maxsize=1)
def _bench(
    ground: str, checkpoint: str | None, source: Source, samples: Samples, start: Start, seed: int | None
) -> _Bench:
    choices = Choices(source=source, samples=samples, start=start, machine=Machine(seed=seed or 0))
    return _Bench(open_asked(checkpoint, choices, Silent()), samples)


@dataclass(frozen=True, eq=False)
class _Left:
    """A model with something gone, and what is left of it."""

    opened: Opened
    figures: TrialFigures


def _left(bench: _Bench, trial: Trial, folder: Path, place: Place, listener: Listener) -> _Left:
    if trial.is_dense:
        return _dense(bench, trial)
    if prunes_weights(trial.choices.importance):
        return _masked(bench, trial, place, listener)
    return _smaller(bench, trial, folder, place, listener)


def _dense(bench: _Bench, trial: Trial) -> _Left:
    opened, facts, choices = bench.opened, bench.facts, trial.choices
    if prunes_weights(choices.importance):
        names = prunable_weights(
            opened.model, opened.structure, choices.weights.prune_classifier, choices.budget.ignore
        )
        tensors = named_tensors(opened.model)
        there = sum(tensors[name].numel() for name in names)
    else:
        there = sum(group.width for group in opened.structure.groups)
    whole = Change(there, there)
    return _Left(
        opened, TrialFigures(Change(facts.params, facts.params), Change(facts.macs, facts.macs), whole, 1.0)
    )


def _masked(bench: _Bench, trial: Trial, place: Place, listener: Listener) -> _Left:
    """Mask weights; those that the checkpoint has masked stay so."""
    opened = bench.opened
    masking = decide_masks(opened, trial.choices, place, listener)
    model = with_masks(opened.model, masking.masks)
    found = mask_facts(
        kept_counts(masking.masks), bench.facts, ratio=trial.ratio, base=masking.budget.base.value
    )
    figures = TrialFigures(
        Change(bench.facts.params, bench.facts.params - found.size + found.kept),
        Change(bench.facts.macs, found.macs),
        Change(found.size, found.kept),
        found.effective_ratio,
        found.collapsed,
    )
    masks = to_record({**(opened.masks or {}), **masking.masks}, named_tensors(model))
    record = replace(opened.record or PrunedRecord(), masks=masks)
    return _Left(replace(opened, model=model, record=record), figures)


def _smaller(bench: _Bench, trial: Trial, folder: Path, place: Place, listener: Listener) -> _Left:
    """Take units out; what is masked of those that stay remains so."""
    opened = bench.opened
    check_prunable(opened)
    scored = _with_scores(opened, trial, folder, place, listener)
    cut = cut_at_once(opened, scored, place, listener)
    cut, _ = recover(cut, trial.choices, place, listener, lambda model, stage, most=None: None)
    cut = with_lasting_masks(cut)
    plan = cut.plan
    assert plan is not None
    facts = describe(cut.smaller, *opened.example)
    params, macs = Change(bench.facts.params, facts.params), Change(bench.facts.macs, facts.macs)
    units = Change(plan.unit_count, plan.kept_count)
    counted = {"units": units, "params": params, "macs": macs}[limit_of(trial.choices.budget).currency.value]
    figures = TrialFigures(params, macs, units, counted.before / counted.after if counted.after else None)
    record = PrunedRecord(masks=to_record(cut.masks or {}, named_tensors(cut.smaller)))
    return _Left(replace(opened, model=cut.smaller, record=record), figures)


def _with_scores(opened: Opened, trial: Trial, folder: Path, place: Place, listener: Listener) -> Choices:
    """Return the choices with a file of the scores, which are the same for every budget."""
    choices, path = trial.choices, folder / f"{trial.scores_key}.scores.safetensors"
    try:
        Scores.from_bytes(read_whole(path, None))
    except (OSError, CheckpointError):  # not there, or damaged
        name = choices.importance.method[0]
        found = measure_scores(opened, choices.importance, choices.samples, choices.machine, place, listener)
        write_file(path, found[name].to_bytes(), force=True)
    return replace(choices, decision=Decision(scores=str(path)))


def _trained(opened: Opened, trial: Trial, folder: Path, place: Place, listener: Listener) -> nn.Module:
    """Train on; a run that was stopped goes on."""
    choices = trial.choices
    if choices.recipe.patience is None:  # nothing asks for the test data before the end
        opened = replace(opened, spec=replace(opened.spec, data=replace(opened.spec.data, test=None)))
    job = Job(
        opened,
        build_schedule("none", {}, Wishes(seed=choices.machine.seed)),
        choices.recipe,
        choices.samples,
        choices.machine,
        Run(resume=(folder / STATE).is_file()),
        choices.source,
        folder,
    )
    with _quietly_resumed(job):
        return run_training(job, place, listener).model
    return run_training(replace(job, run=Run()), place, listener).model


@contextmanager
def _quietly_resumed(job: Job) -> Iterator[None]:
    """Let a run that cannot be taken up be started over."""
    if not job.run.resume:
        yield
        return
    with suppress(UsageError, CheckpointError):
        yield
