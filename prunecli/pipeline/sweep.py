"""The story of `sweep`: methods x budgets x seeds -> trials, run or read back -> one table with curves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prunecli import data
from prunecli.errors import InputError, NotPrunableError, OutputError, UsageError
from prunecli.export.files import check_free, write_files
from prunecli.importance import Granularity, find_method
from prunecli.pipeline.contenders import asked_of, check_sweep
from prunecli.pipeline.grounds import asked_ratio, digest_of_ground, settings_of_sweep
from prunecli.pipeline.jobs import run_jobs
from prunecli.pipeline.keeping import owned
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.masking import open_asked
from prunecli.pipeline.opening import Opened, check_start
from prunecli.pipeline.paths import named_after
from prunecli.pipeline.recovering import check_sample
from prunecli.pipeline.running import running_on
from prunecli.pipeline.sampling import find_source
from prunecli.pipeline.settings import Choices, SweepChoices, SweptFiles
from prunecli.pipeline.trials import (
    Outcome,
    Trial,
    budget_text,
    find_outcome,
    forget_models,
    run_trial,
)
from prunecli.pipeline.versions import versions
from prunecli.report import Environment
from prunecli.report.sweep import SweepReport, SweepRow
from prunecli.report.sweep_page import sweep_page
from prunecli.report.sweep_pictures import sweep_picture
from prunecli.report.sweep_text import sweep_csv
from prunecli.strict_json import Json

SO_FAR = "so-far.html"
"""What there is of a sweep that is not over, in the folder of its trials."""
SECONDS_BETWEEN_PAGES = 30.0


@dataclass(frozen=True, eq=False)
class Swept:
    """What was found, and the files written."""

    report: SweepReport
    files: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which trials there are, in the order of the report: by method, then compression, then seed."""

    trials: tuple[Trial, ...]
    title: str
    settings: Mapping[str, Json]
    environment: Environment

    def report(self, found: Mapping[str, Outcome]) -> SweepReport:
        """Return what is known by now."""
        rows = [_row(trial, found[trial.key]) for trial in self.trials if trial.key in found]
        granularity = self.trials[0].choices.importance.granularity
        return SweepReport(self.title, granularity, tuple(rows), self.settings, self.environment)


def sweep(
    checkpoint: str | None, choices: SweepChoices | None = None, listener: Listener | None = None
) -> Swept:
    """Compare methods over budgets and seeds. What a trial comes to is kept: the same command goes on.

    With `jobs` above 1, trials run in processes of their own; a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        checkpoint: what is pruned; None with `choices.start.at_init`, for a new model for each seed.
        choices: what the user wants.
        listener: hears of every trial that is over.

    Raises:
        UsageError: choices contradict each other, or a method is unknown.
        InputError: a file is bad, unsafe, or does not match the others.
        OutputError: a file is there already, or cannot be written; another sweep runs in the same folder.
        NotPrunableError: no trial could be carried out.
        KeyboardInterrupt: somebody stopped it; what was found is kept.
    """
    choices, listener = choices or SweepChoices(), listener or Silent()
    check_sweep(choices)
    check_start(checkpoint, choices.start.as_start())
    stem = _stem(named_after(checkpoint, choices.source), choices.files)
    paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("json", "csv", "html", "svg")}
    folder = stem.with_name(f"{stem.name}.run")
    _check_free(tuple(paths.values()), folder, choices.files.force)
    plan = _plan(checkpoint, choices, listener)
    with owned(folder):
        found = _outcomes(plan, folder, choices.swept.jobs, listener)
    report = plan.report(found)
    if all(row.figures is None for row in report.rows):
        raise NotPrunableError(f"All {len(report.rows)} trials failed. The first: {report.rows[0].error}")
    texts = {
        "json": report.to_json(),
        "csv": sweep_csv(report),
        "html": sweep_page(report),
        "svg": sweep_picture(report.trade_off),
    }
    write_files({paths[kind]: text.encode() for kind, text in texts.items()}, choices.files.force)
    (folder / SO_FAR).unlink(missing_ok=True)
    return Swept(report, tuple(paths.values()))


def _check_free(paths: Sequence[Path], folder: Path, force: bool) -> None:
    """Make sure that the files are free, or may be replaced; what was found is not lost by that.

    Raises:
        OutputError: one is there, or cannot be written.
    """
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None and folder.is_dir() and not force:
        raise OutputError(
            f"`{taken}` is there already. Use `--force` to write it anew: trials that are done are kept in "
            f"`{folder.name}` and not run again, only what is new."
        )
    check_free(paths, force)


def _stem(named: Path, files: SweptFiles) -> Path:
    """Return what all files are named after: beside the checkpoint or spec, or in the folder asked for."""
    name = f"{named.stem}.sweep"
    if files.out is None:
        return named.with_name(name)
    out = Path(files.out)
    if out.is_file() or out.suffix in (".json", ".csv", ".html", ".svg", ".safetensors"):
        raise UsageError(f"`--out {out}`: a sweep writes several files; name a folder.")
    return out / name


def _plan(checkpoint: str | None, choices: SweepChoices, listener: Listener) -> _Plan:
    """Open everything once, so that what is missing shows before long work starts."""
    asked = asked_of(choices)
    opened = open_asked(checkpoint, asked[0], listener)
    _check_data(opened, asked)
    with running_on(choices.machine, listener) as place:
        device = place.device.type
    ground = digest_of_ground(opened, asked[0], device)
    trials = [
        Trial(checkpoint, _with_seed(told, seed, choices), asked_ratio(opened, told), ground)
        for told in asked
        for seed in _seeds(choices)
    ]
    order = list(dict.fromkeys(_contender(trial) for trial in trials))
    trials.sort(
        key=lambda trial: (order.index(_contender(trial)), trial.ratio)
    )  # stable: seeds stay in order
    settings = settings_of_sweep(opened, asked[0], choices)
    return _Plan(tuple(trials), opened.name, settings, Environment(device, versions()))


def _contender(trial: Trial) -> tuple[str, ...]:
    importance = trial.choices.importance
    return (*importance.method, trial.choices.budget.scope)


def _seeds(choices: SweepChoices) -> range:
    return range(choices.machine.seed, choices.machine.seed + choices.swept.seeds)


def _with_seed(told: Choices, seed: int, choices: SweepChoices) -> Choices:
    """Return the same of one seed; of several processes, each has one thread unless told otherwise."""
    threads = choices.machine.threads or (1 if choices.swept.jobs > 1 else None)
    return replace(told, machine=replace(told.machine, seed=seed, threads=threads))


def _check_data(opened: Opened, asked: Sequence[Choices]) -> None:
    """Open all data that will be needed.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    first = asked[0]
    needed = {opened.spec.data.test}
    for told in asked:
        method = told.importance.method[0]
        if find_method(method, Granularity(told.importance.granularity)).needs_data:
            needed.add(find_source(opened, method))
        check_sample(opened, told)
    if first.recipe.epochs:
        if opened.spec.data.train is None:
            raise InputError(
                "Training looks at samples, and the spec names none under `[data] train`. Add e.g. "
                "`--train-data npz:train.npz`, or leave out `--epochs`."
            )
        needed.add(opened.spec.data.train)
    for source in sorted(source for source in needed if source is not None):
        data.open_data(source, opened.spec, download=first.samples.download)


def in_order(trials: Sequence[Trial]) -> list[Trial]:
    """Return each trial once, so that what is there early tells most.

    Seed after seed; of each the ends of the budgets first, then the middles, and so on; at each budget all
    methods.
    """
    seeds = sorted({trial.choices.machine.seed for trial in trials})
    ratios = sorted({trial.ratio for trial in trials})
    turns = {ratios[place]: turn for turn, place in enumerate(bisection(len(ratios)))}
    once = {trial.key: trial for trial in reversed(trials)}
    firsts = [trial for trial in trials if once[trial.key] is trial]
    return sorted(firsts, key=lambda trial: (seeds.index(trial.choices.machine.seed), turns[trial.ratio]))


def bisection(count: int) -> Iterator[int]:
    """Yield 0 to count - 1: the ends, the middle, the middles of the halves, and so on.

    >>> list(bisection(7))
    [0, 6, 3, 1, 4, 2, 5]
    """
    yield from range(min(count, 1))
    if count > 1:
        yield count - 1
    gaps = [(0, count - 1)]
    for low, high in gaps:  # which grows meanwhile
        middle = (low + high) // 2
        if low < middle < high:
            yield middle
            gaps += [(low, middle), (middle, high)]


def _outcomes(plan: _Plan, folder: Path, jobs: int, listener: Listener) -> dict[str, Outcome]:
    """Return what every trial came to, by key; what is there already is read back."""
    trials = in_order(plan.trials)
    found = {trial.key: known for trial in trials if (known := find_outcome(trial, folder)) is not None}
    if found:
        listener.note(f"{len(found)} of {len(trials)} trials are there already")
    missing = [trial for trial in trials if trial.key not in found]
    next_page = time.monotonic() + SECONDS_BETWEEN_PAGES
    try:
        on_gpus = plan.environment.device == "cuda"
        for trial, outcome in run_jobs(partial(run_trial, folder=folder), missing, jobs, on_gpus):
            found[trial.key] = outcome
            listener.note(f"[{len(found)}/{len(trials)}] {trial.label}: {_in_words(outcome)}")
            listener.progress("trials", len(found), len(trials))
            if time.monotonic() >= next_page:
                _write_so_far(plan, found, folder)
                next_page = time.monotonic() + SECONDS_BETWEEN_PAGES
    except KeyboardInterrupt:
        if found:
            _write_so_far(plan, found, folder)
        listener.warn(
            f"stopped after {len(found)} of {len(trials)} trials; the same command goes on from there"
            + (f", and `{folder / SO_FAR}` shows what there is" if found else "")
        )
        raise
    finally:
        forget_models()
    return found


def _write_so_far(plan: _Plan, found: Mapping[str, Outcome], folder: Path) -> None:
    write_files({folder / SO_FAR: sweep_page(plan.report(found)).encode()}, force=True)


def _row(trial: Trial, outcome: Outcome) -> SweepRow:
    choices = trial.choices
    return SweepRow(
        method=choices.importance.method[0],
        scope=choices.budget.scope,
        budget=budget_text(choices),
        ratio=trial.ratio,
        seed=choices.machine.seed,
        figures=outcome.figures,
        error=outcome.error,
    )


def _in_words(outcome: Outcome) -> str:
    figures = outcome.figures
    if figures is None:
        return f"failed: {outcome.error}"
    parts = [f"top-1 {100 * figures.top1:.2f} %"] if figures.top1 is not None else []
    if figures.loss is not None:
        parts.append(f"loss {figures.loss:.4g}")
    parts.append(f"r_e {figures.reached:.4g}" if figures.reached is not None else "nothing left")
    if figures.collapsed:
        parts.append(f"{len(figures.collapsed)} layer{'s' * (len(figures.collapsed) > 1)} collapsed")
    return ", ".join(parts)
