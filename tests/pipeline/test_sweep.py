"""Sweeps from Python: what is run, in which order, kept and read back; several processes; what fails."""

from __future__ import annotations

import html
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
import torch

from prunecli.errors import DataError, NotPrunableError, OutputError, UsageError
from prunecli.pipeline import keeping, trials
from prunecli.pipeline import sweep as story
from prunecli.pipeline.contenders import asked_of, contenders
from prunecli.pipeline.jobs import run_jobs
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.prune import prune
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Compared,
    Files,
    Importance,
    Machine,
    Recovery,
    Samples,
    Source,
    SweepChoices,
    Swept,
    SweptFiles,
    SweptRecipe,
    SweptStart,
    SweptWeights,
)
from prunecli.pipeline.sweep import bisection, in_order, sweep
from prunecli.pipeline.trials import Trial, find_outcome, run_trial
from prunecli.report import Change
from prunecli.report.sweep import SweepReport

MLP = Path(__file__).parents[2] / "sample_models" / "digits_mlp" / "model.pt"
SPEC = str(MLP.with_suffix(".toml"))
DIGITS = MLP.parents[1] / "digits.npz"
WEIGHTS = Compared(("magnitude,magnitude@layer", "random"), granularity="weight")


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def trials(self) -> list[str]:
        return [text.partition("] ")[2].partition(":")[0] for text in self.notes if text.startswith("[")]


def quick(folder: Path, **changes: object) -> SweepChoices:
    """Return a sweep of weights over three budgets and two seeds, without training."""
    choices = SweepChoices(
        samples=Samples(batch_size=256, test_data=f"npz:{DIGITS}#test[:100]"),
        compared=WEIGHTS,
        swept=Swept(ratio=("1,2,4",), seeds=2),
        machine=Machine("cpu", threads=1),
        files=SweptFiles(str(folder)),
    )
    return replace(choices, **changes)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def never(*_: object) -> None:
    raise AssertionError("a trial ran that was there already")


def test_a_sweep_of_weights_meets_every_budget(tmp_path: Path) -> None:
    listener = Noting()
    found = sweep(str(MLP), quick(tmp_path), listener)
    assert [path.name for path in found.files] == [
        f"model.sweep.{kind}" for kind in ("json", "csv", "html", "svg")
    ]
    assert SweepReport.from_json(found.files[0].read_text()) == found.report
    rows = found.report.rows
    assert [(row.name, row.ratio, row.seed) for row in rows] == [
        (name, ratio, seed)
        for name in ("magnitude", "magnitude@layer", "random")
        for ratio in (1, 2, 4)
        for seed in (0, 1)
    ]
    for row in rows:
        assert row.figures is not None
        params = row.figures.params
        assert abs(params.after - params.before / row.ratio) <= 1
        assert row.figures.reached == pytest.approx(row.ratio, rel=1e-3)
        assert row.figures.samples == 100
        assert (row.figures.macs.ratio < 1) == (row.ratio > 1)
    assert len(listener.trials) == len(set(listener.trials)) == 2 * (1 + 3 * 2)  # the dense one once per seed


def test_dense_is_the_same_for_all_methods_of_a_seed(tmp_path: Path) -> None:
    choices = quick(tmp_path, source=Source(spec=SPEC), start=SweptStart(at_init=True))
    found = sweep(None, choices, Noting())
    dense = {row.seed: set[object]() for row in found.report.rows}
    for row in found.report.rows:
        if row.ratio == 1:
            dense[row.seed].add(row.figures)
    assert [len(each) for each in dense.values()] == [1, 1]
    assert dense[0] != dense[1]  # another seed, another model
    assert found.files[0].name == "model.sweep.json"


def test_all_methods_of_a_seed_start_from_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    decide = trials.decide_masks

    def noting(opened, choices, *rest):  # type: ignore[no-untyped-def]
        weights = torch.cat([each.detach().flatten() for each in opened.model.parameters()])
        seen.setdefault(choices.machine.seed, []).append(weights)
        return decide(opened, choices, *rest)

    monkeypatch.setattr(trials, "decide_masks", noting)
    compared = Compared(("magnitude,snip",), granularity="weight")
    sweep(
        None,
        quick(tmp_path, source=Source(spec=SPEC), start=SweptStart(at_init=True), compared=compared),
    )
    assert {seed: len(models) for seed, models in seen.items()} == {0: 4, 1: 4}
    assert all(torch.equal(models[0], each) for models in seen.values() for each in models)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_what_is_there_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep(str(MLP), quick(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="is there already"):
        sweep(str(MLP), quick(tmp_path))
    monkeypatch.setattr(trials, "_run", never)
    listener = Noting()
    again = sweep(str(MLP), quick(tmp_path, files=SweptFiles(str(tmp_path), force=True)), listener)
    assert again.report == first.report
    assert contents(tmp_path) == before
    assert "14 of 14 trials are there already" in listener.notes


def test_another_budget_runs_only_what_is_new(tmp_path: Path) -> None:
    sweep(str(MLP), quick(tmp_path))
    listener = Noting()
    more = quick(tmp_path, swept=Swept(ratio=("1,2,4,8",), seeds=2), files=SweptFiles(str(tmp_path), True))
    found = sweep(str(MLP), more, listener)
    assert len(listener.trials) == 3 * 2
    assert all("ratio=8" in label for label in listener.trials)
    assert len(found.report.rows) == 3 * 4 * 2


@pytest.mark.parametrize(
    "changed",
    (
        {"samples": Samples(batch_size=256, test_data=f"npz:{DIGITS}#test[:50]")},
        {"weights": SweptWeights(prune_classifier=True)},
        {"machine": Machine("cpu", "float64", threads=1)},
        {"compared": replace(WEIGHTS, score_bn="train")},
    ),
    ids=("data", "prunable", "dtype", "statistics"),
)
def test_what_a_result_depends_on_is_in_its_key(tmp_path: Path, changed: dict[str, object]) -> None:
    sweep(str(MLP), quick(tmp_path))
    listener = Noting()
    sweep(str(MLP), quick(tmp_path, files=SweptFiles(str(tmp_path), True), **changed), listener)
    assert listener.trials


def test_code_beside_the_model_is_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text('[model]\nfactory = "net.py:build"\n[input]\nshape = [4]\n')
    (tmp_path / "net.py").write_text("from pieces.one import layers\n\ndef build():\n    return layers()\n")
    (tmp_path / "pieces").mkdir()
    piece = (
        "from torch import nn\nfrom . import two\n\ndef layers():\n    return nn.Sequential(*two.parts())\n"
    )
    (tmp_path / "pieces" / "one.py").write_text(piece)
    other = "from torch import nn\n\ndef parts():\n    return nn.Linear(4, {0}), nn.Linear({0}, 2)\n"
    (tmp_path / "unused.py").write_text("1\n")
    choices = quick(
        tmp_path,
        source=Source(spec=str(tmp_path / "net.toml")),
        samples=Samples(),
        start=SweptStart(at_init=True),
        swept=Swept(ratio=("2",), seeds=1),
        files=SweptFiles(str(tmp_path / "out"), force=True),
    )
    ran = []
    for text in (other.format(8), other.format(8) + "# the same\n", other.format(16)):
        (tmp_path / "pieces" / "two.py").write_text(text)
        for unused in ("1\n", "2\n"):
            (tmp_path / "unused.py").write_text(unused)
            listener = Noting()
            sweep(None, choices, listener)
            ran.append(len(listener.trials))
    assert ran == [3, 0] * 3


def test_speed_is_not_in_the_key(tmp_path: Path) -> None:
    sweep(str(MLP), quick(tmp_path))
    listener = Noting()
    faster = quick(tmp_path, machine=Machine("cpu", threads=2), files=SweptFiles(str(tmp_path), True))
    sweep(str(MLP), faster, listener)
    assert not listener.trials


@pytest.mark.parametrize("damage", (b"", b"{", b"[]", b'{"version": 1}', b'{"version": 9, "trial": "x"}'))
def test_a_damaged_result_is_found_anew(tmp_path: Path, damage: bytes) -> None:
    choices = quick(tmp_path, compared=replace(WEIGHTS, method=("magnitude",)))
    first = sweep(str(MLP), choices)
    kept = sorted((tmp_path / "model.sweep.run").glob("*.json"))
    kept[0].write_bytes(damage)
    listener = Noting()
    again = sweep(str(MLP), replace(choices, files=SweptFiles(str(tmp_path), True)), listener)
    assert len(listener.trials) == 1
    assert again.report == first.report


def trained(folder: Path, **changes: object) -> SweepChoices:
    data = f"npz:{DIGITS}#train[:512]"
    return quick(
        folder,
        source=Source(spec=SPEC),
        start=SweptStart(at_init=True),
        samples=Samples(batch_size=32, train_data=data, test_data=f"npz:{DIGITS}#test[:100]"),
        compared=Compared(("magnitude,random",), granularity="weight"),
        swept=Swept(ratio=("1,4",), seeds=1),
        recipe=SweptRecipe(epochs=2, lr=0.05),
        **changes,
    )


def test_what_is_stopped_in_training_goes_on_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sweep(None, trained(whole))
    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(keeping.Keeper, "tick", lambda self, tick: seen.append(tick.batch))
        patch.setattr(keeping.Keeper, "wants_to_stop", property(lambda self: len(seen) >= 40))
        listener = Noting()
        with pytest.raises(KeyboardInterrupt):
            sweep(None, trained(stopped), listener)
    assert "stopped after 1 of 3 trials; the same command goes on from there" in listener.warnings[0]
    folder = stopped / "model.sweep.run"
    (half,) = folder.glob("*.run")
    assert (half / "state.safetensors").is_file()
    assert "Sweep of" in (folder / "so-far.html").read_text()
    assert not contents(stopped)
    ticks: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(keeping.Keeper, "tick", lambda self, tick: ticks.append(tick.batch))
        listener = Noting()
        sweep(None, trained(stopped), listener)
    assert "1 of 3 trials are there already" in listener.notes
    assert len(ticks) == 3 * 32 - len(seen)  # and not one minibatch twice
    assert contents(stopped) == contents(whole)
    assert not list(folder.glob("*.run"))
    assert not (folder / "so-far.html").exists()


def test_training_starts_over_where_its_state_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep(None, trained(tmp_path / "whole"))
    run = trials.run_training

    def damaging(job, place, listener):  # type: ignore[no-untyped-def]
        if not job.run.resume:
            return run(job, place, listener)
        (job.folder / keeping.STATE).write_bytes(b"damaged")
        return run(job, place, listener)

    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(keeping.Keeper, "tick", lambda self, tick: seen.append(tick.batch))
        patch.setattr(keeping.Keeper, "wants_to_stop", property(lambda self: len(seen) >= 4))
        with pytest.raises(KeyboardInterrupt):
            sweep(None, trained(tmp_path / "stopped"))
    monkeypatch.setattr(trials, "run_training", damaging)
    assert sweep(None, trained(tmp_path / "stopped")).report == whole.report


def test_masked_weights_stay_masked_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = []
    run = trials.run_training

    def noting(job, place, listener):  # type: ignore[no-untyped-def]
        done = run(job, place, listener)
        zeros.append(sum(int((each == 0).sum()) for each in done.model.parameters()))
        return done

    monkeypatch.setattr(trials, "run_training", noting)
    found = sweep(None, trained(tmp_path))
    gone = {row.figures.params.before - row.figures.params.after for row in found.report.rows if row.figures}
    assert zeros[0] == 0
    assert set(zeros) == gone
    assert {row.figures.top1 for row in found.report.rows if row.figures} != {None}


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    choices = trained(one)
    sweep(None, choices)
    swept = replace(choices.swept, jobs=2)
    sweep(None, replace(choices, swept=swept, files=SweptFiles(str(two)), machine=Machine("cpu")))
    assert contents(one) == contents(two)


def test_an_error_in_another_process_arrives_here() -> None:
    assert list(run_jobs(sqrt, [4.0], 2)) == [(4.0, 2.0)]
    with pytest.raises(ValueError, match="domain"):
        list(run_jobs(sqrt, [4.0, -1.0], 2))


def test_what_was_handed_out_ahead_is_not_taken_up_after_a_stop(tmp_path: Path) -> None:
    tasks = [f"sleep {2 * min(number, 1)}; touch {tmp_path / str(number)}" for number in range(8)]
    results = run_jobs(os.system, tasks, 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1", "2"}  # the first, and two in hand


def test_units_are_swept_too_and_scored_once_for_all_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    measure = trials.measure_scores

    def noting(opened, importance, *rest):  # type: ignore[no-untyped-def]
        scored.append(importance.method[0])
        return measure(opened, importance, *rest)

    monkeypatch.setattr(trials, "measure_scores", noting)
    choices = quick(
        tmp_path,
        compared=Compared(("magnitude,random@layer",)),
        swept=Swept(keep=("1,0.5",), target=("macs=0.5",), seeds=1),
    )
    found = sweep(str(MLP), choices)
    assert scored == ["magnitude", "random"] or scored == ["random", "magnitude"]
    by = {(row.name, row.budget): row for row in found.report.rows}
    assert len(by) == 2 * 3
    for (name, budget), row in by.items():
        assert row.figures is not None, (name, budget, row.error)
        if budget == "keep=0.5":
            assert row.figures.pruned.ratio == pytest.approx(0.5, abs=0.02)
        elif budget == "macs=0.5":
            assert row.figures.macs.ratio <= 0.5
            assert row.ratio == pytest.approx(2, abs=1e-3)
        else:
            assert row.figures.params == Change(row.figures.params.before, row.figures.params.before)


@pytest.mark.parametrize("keep", ("1", "0.5"))
def test_what_a_checkpoint_has_masked_stays_so_when_units_leave_and_it_trains(
    keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Choices(
        importance=Importance(("magnitude",), granularity="weight"),
        budget=Budget(ratio="4"),
        files=Files(str(tmp_path / "masked.safetensors"), onnx=False),
    )
    prune(str(MLP), weights)
    done = []
    run = trials.run_training

    def noting(job, place, listener):  # type: ignore[no-untyped-def]
        done.append((job.opened.masks, run(job, place, listener)))
        return done[-1][1]

    monkeypatch.setattr(trials, "run_training", noting)
    choices = quick(
        tmp_path,
        source=Source(spec=SPEC),
        compared=Compared(("magnitude",)),
        swept=Swept(keep=(keep,), seeds=1),
        recipe=SweptRecipe(epochs=1, lr=0.05, weight_decay=0.1),
    )
    sweep(str(tmp_path / "masked.safetensors"), choices)
    (masks, trained) = done[0]
    tensors = dict(trained.model.named_parameters())
    assert set(masks) == {"1.weight", "3.weight"}
    for name, mask in masks.items():
        assert mask.shape == tensors[name].shape
        assert not mask.all()
        assert torch.equal(tensors[name] != 0, mask)


def test_units_can_be_recovered_and_trained(tmp_path: Path) -> None:
    choices = quick(
        tmp_path,
        samples=Samples(batch_size=256, samples=256),
        compared=Compared(("random",)),
        swept=Swept(keep=("0.4",), seeds=1),
    )
    plain, solved, tuned = (
        sweep(str(MLP), replace(choices, files=SweptFiles(str(tmp_path / name)), **changed)).report.rows[0]
        for name, changed in (
            ("plain", {}),
            ("solved", {"recovery": Recovery(reconstruct=True)}),
            ("tuned", {"recipe": SweptRecipe(epochs=2, lr=0.05)}),
        )
    )
    assert plain.figures is not None
    for better in (solved, tuned):
        assert better.figures is not None
        assert better.figures.top1 > plain.figures.top1  # type: ignore[operator]
        assert better.figures.macs == plain.figures.macs


def test_a_trial_that_cannot_be_is_a_row(tmp_path: Path) -> None:
    listener = Noting()
    choices = quick(
        tmp_path, compared=replace(WEIGHTS, method=("magnitude",)), swept=Swept(ratio=("2,100000",), seeds=1)
    )
    found = sweep(str(MLP), choices, listener)
    fine, failed = found.report.rows
    assert fine.figures is not None
    assert failed.figures is None
    assert "A compression ratio of 100000 leaves nothing" in str(failed.error)
    assert any("failed: A compression ratio" in note for note in listener.notes)
    page = re.sub("</?code>", "`", html.unescape(found.files[2].read_text()))
    assert failed.error is not None
    assert failed.error in page
    listener = Noting()  # and what cannot be is known the next time
    sweep(str(MLP), replace(choices, files=SweptFiles(str(tmp_path), True)), listener)
    assert not listener.trials


def test_what_failed_for_another_reason_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = quick(tmp_path, compared=replace(WEIGHTS, method=("magnitude",)), swept=Swept(ratio=("1,2",)))
    run = trials._run

    def failing(trial: Trial, *rest: object) -> object:
        if trial.is_dense:
            raise DataError("Out of memory.")
        return run(trial, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trials, "_run", failing)
        report = sweep(str(MLP), choices).report
    assert [row.error for row in report.rows] == ["Out of memory."] * 3 + [None] * 3
    listener = Noting()
    again = sweep(str(MLP), replace(choices, files=SweptFiles(str(tmp_path), True)), listener)
    assert len(listener.trials) == 3
    assert all(row.error is None for row in again.report.rows)


def test_a_sweep_of_failures_fails(tmp_path: Path) -> None:
    choices = quick(tmp_path, swept=Swept(ratio=("100000",)))
    with pytest.raises(NotPrunableError, match="All 9 trials failed. The first: A compression ratio"):
        sweep(str(MLP), choices)
    assert not contents(tmp_path)


def test_trials_are_ordered_so_that_what_is_there_early_tells_most(tmp_path: Path) -> None:
    listener = Noting()
    sweep(str(MLP), quick(tmp_path, swept=Swept(ratio=("16,8,4,2,1",), seeds=2)), listener)
    names = ("magnitude", "magnitude@layer", "random")
    one = ["dense", *(f"{name} ratio={ratio}" for ratio in (16, 4, 2, 8) for name in names)]
    assert listener.trials == [f"{label}, seed {seed}" for seed in (0, 1) for label in one]


@pytest.mark.parametrize("count", range(12))
def test_bisection_names_every_place_once(count: int) -> None:
    order = list(bisection(count))
    assert sorted(order) == list(range(count))
    assert order[:2] == ([0, count - 1] if count > 1 else list(range(count)))


def made(choices: SweepChoices) -> list[Trial]:
    return [Trial(None, told, float(told.budget.ratio or 1), "ground") for told in asked_of(choices)]


def test_a_trial_can_be_sent_and_is_the_same_there(tmp_path: Path) -> None:
    for trial in made(quick(tmp_path)):
        assert pickle.loads(pickle.dumps(trial)).key == trial.key
    assert len(in_order(made(quick(tmp_path)))) == 1 + 3 * 2


def test_results_are_kept_under_the_key(tmp_path: Path) -> None:
    choices = quick(
        tmp_path, swept=Swept(ratio=("2",), seeds=1), compared=replace(WEIGHTS, method=("random",))
    )
    (told,) = asked_of(choices)
    trial = Trial(str(MLP), told, 2.0, "ground")
    assert find_outcome(trial, tmp_path) is None
    outcome = run_trial(trial, tmp_path)
    assert find_outcome(trial, tmp_path) == outcome
    assert json.loads((tmp_path / f"{trial.key}.json").read_text())["trial"] == "random ratio=2, seed 0"


def test_budgets_are_gone_through_once_however_they_are_written(tmp_path: Path) -> None:
    swept = Swept(ratio=("2,2.0,4", "2"), keep=("50%,0.5, .50",))
    told = asked_of(quick(tmp_path, swept=swept, compared=replace(WEIGHTS, method=("random",))))
    assert [(each.budget.ratio, each.budget.keep) for each in told] == [
        ("2", None),
        ("4", None),
        (None, "50%"),
    ]


def test_a_folder_belongs_to_one_sweep_at_a_time(tmp_path: Path) -> None:
    with (
        keeping.owned(tmp_path / "model.sweep.run"),
        pytest.raises(OutputError, match="Another run is going"),
    ):
        sweep(str(MLP), quick(tmp_path))
    assert not contents(tmp_path)


def test_all_means_the_rows_of_the_comparison(tmp_path: Path) -> None:
    found = contenders(quick(tmp_path, compared=Compared(("all",), granularity="weight")))
    names = [(each.method, each.scope) for each in found]
    assert ("magnitude", "layer") in names
    assert ("snip", "layer") not in names
    assert not {"obd", "snip-grad"} & {name for name, _ in names}
    units = {each.method for each in contenders(quick(tmp_path, compared=Compared(("all",))))}
    assert {"taylor-fo", "magnitude"} <= units
    assert not {"oracle", "oracle-combinatorial"} & units


def test_arguments_go_to_the_methods_that_have_them(tmp_path: Path) -> None:
    compared = Compared(("magnitude,synflow,random",), ("steps=7",), granularity="weight")
    found = {each.method: each.arguments for each in contenders(quick(tmp_path, compared=compared))}
    assert found == {"magnitude": (), "synflow": ("steps=7",), "random": ()}


@pytest.mark.parametrize(
    ("changed", "message"),
    (
        ({"compared": Compared()}, "Say what to compare: `--method magnitude,random`"),
        ({"compared": replace(WEIGHTS, method=("magnitud",))}, "magnitude"),
        ({"compared": replace(WEIGHTS, method=("taylor-fo",))}, "`taylor-fo` scores units, not weights"),
        (
            {"compared": replace(WEIGHTS, method=("snip@row",))},
            "`row` is no scope. Expected one of global, layer",
        ),
        ({"compared": replace(WEIGHTS, method_arg=("x=1",))}, "No method of the sweep has an argument `x`"),
        ({"swept": Swept()}, "Say which budgets to go through: `--ratio 1,2,4,8`"),
        ({"swept": Swept(ratio=("0.5",))}, "`--ratio 0.5`: a compression ratio is a number from 1 on"),
        ({"swept": Swept(target=("macs=0.5",))}, "`--target` is a budget of units"),
        ({"swept": Swept(ratio=("2",), seeds=0)}, "expected whole numbers from 1 on"),
        ({"given": frozenset({"lr"})}, "`--lr` does nothing without `--epochs`"),
        ({"given": frozenset({"train_data"})}, "`--train-data` does nothing without `--epochs`"),
        ({"given": frozenset({"recovery_samples"})}, "`--recovery-samples` does nothing without"),
        ({"given": frozenset({"rank"})}, "`--rank` does nothing with `--granularity weight`"),
        ({"recovery": Recovery(reconstruct=True)}, "`--reconstruct` and `--granularity weight`"),
        ({"files": SweptFiles("a.json")}, "a sweep writes several files; name a folder"),
        ({"start": SweptStart(True)}, "`--at-init` starts from a new model: leave out"),
        ({"start": SweptStart(init="xavier")}, "`--init xavier` is for new models"),
    ),
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(str(MLP), quick(tmp_path, **changed))
    assert not list(tmp_path.iterdir())


def test_something_to_start_from_must_be_named(tmp_path: Path) -> None:
    message = "Name a checkpoint, or say `--at-init --spec SPEC`"
    with pytest.raises(UsageError, match=message):
        sweep(None, quick(tmp_path))
    with pytest.raises(UsageError, match=message):
        prune(None, Choices(importance=Importance(granularity="weight"), budget=Budget(ratio="2")))


@pytest.mark.parametrize(
    ("samples", "epochs", "message"),
    (
        (Samples(test_data="npz:nowhere.npz"), 0, "nowhere.npz"),
        (Samples(train_data="npz:nowhere.npz"), 1, "nowhere.npz"),
    ),
)
def test_data_that_are_missing_show_before_anything_runs(
    tmp_path: Path, samples: Samples, epochs: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "run_trial", never)
    choices = quick(tmp_path, samples=samples, recipe=SweptRecipe(epochs=epochs))
    with pytest.raises(DataError, match=message):
        sweep(str(MLP), choices)


@pytest.mark.parametrize(
    ("change", "differs"),
    (
        (lambda told: replace(told, machine=replace(told.machine, seed=5)), True),
        (lambda told: replace(told, machine=replace(told.machine, threads=5)), False),
        (lambda told: replace(told, recipe=replace(told.recipe, epochs=5)), True),
        (lambda told: replace(told, budget=replace(told.budget, scope="layer")), True),
        (lambda told: replace(told, importance=replace(told.importance, method_arg=("a=1",))), True),
        (lambda told: replace(told, recipe=replace(told.recipe, workers=5)), False),
        (lambda told: replace(told, recipe=replace(told.recipe, lr=5.0)), False),  # without training
    ),
)
def test_keys(tmp_path: Path, change: Callable[..., object], differs: bool) -> None:
    told = next(each for each in asked_of(quick(tmp_path)) if each.budget.ratio == "2")
    before, after = Trial(None, told, 2.0, "g"), Trial(None, change(told), 2.0, "g")  # type: ignore[arg-type]
    assert (before.key != after.key) is differs
    assert Trial(None, told, 2.0, "other").key != before.key
