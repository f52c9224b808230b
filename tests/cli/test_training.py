"""`finetune`, `train` and `prune --steps` on the command line: streams, files, runs, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli import progress
from prunecli.cli.main import run
from prunecli.cli.options import Shown
from prunecli.history import EpochRow
from prunecli.pipeline import keeping
from prunecli.training import Tick

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP = SAMPLES / "digits_mlp" / "model.pt"
SPEC = str(MLP.with_suffix(".toml"))
QUICK = ("--epochs", "2", "--batch-size", "256", "--threads", "1", "--device", "cpu", "--no-onnx")
STEPS = ("--steps", "2", "--prune-every", "2", "--keep", "0.5")
COMMANDS = {
    "finetuned": ("finetune", str(MLP)),
    "trained": ("train", "--spec", SPEC),
    "pruned": ("prune", str(MLP), *STEPS),
}


def command(done: str, folder: Path, *more: str) -> list[str]:
    return [*COMMANDS[done], *QUICK, "--out", str(folder), *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file that a user is after; those of the run are another matter."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("done", COMMANDS)
def test_the_report_holds_rows_and_phases(
    done: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(done, tmp_path, "--json")) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    training = report["training"]
    assert training["schedule"] == ("iterative" if done == "pruned" else "none")
    assert training["batch_size"] == 256
    assert [row["epoch"] for row in training["rows"]] == [1, 2]
    assert [phase["epochs"] for phase in training["phases"]] == [2]
    assert training["rows"][-1]["test_top1"] == report["accuracy_after"]["top1"]
    assert (report["accuracy_before"] is None) == (done == "trained")
    assert json.loads((tmp_path / f"model.{done}.json").read_text())["training"] == training
    lines = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines if "lr" in line] == ["1/2", "2/2"]
    history = (tmp_path / f"model.{done}.run" / "history.jsonl").read_text()
    rows = [json.loads(line) for line in history.splitlines()]
    assert [row["loss"] for row in rows] == [row["loss"] for row in training["rows"]]


@pytest.mark.parametrize("done", COMMANDS)
def test_quietly_only_the_path_is_printed(
    done: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(done, tmp_path, "-q")) == 0
    assert capsys.readouterr() == (f"{tmp_path / f'model.{done}.safetensors'}\n", "")


@pytest.mark.parametrize("done", COMMANDS)
def test_interrupted_it_leaves_no_result_and_goes_on_to_the_same(
    done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(command(done, whole, "-q")) == 0
    with monkeypatch.context() as patch:
        seen: list[Tick] = []
        patch.setattr(keeping.Keeper, "wants_to_stop", property(lambda self: len(seen) >= 7))
        patch.setattr(progress.Reporter, "tick", lambda self, tick: seen.append(tick))
        assert run(command(done, stopped)) == 130
    assert "stopped in epoch 2, minibatch 2; the same command with `--resume`" in capsys.readouterr().err
    assert not contents(stopped)
    assert (stopped / f"model.{done}.run" / "state.safetensors").is_file()
    assert run(command(done, stopped)) == 4
    assert (
        "holds a run already. Go on with `--resume`, or start over with `--force`" in capsys.readouterr().err
    )
    assert run(command(done, stopped, "--resume")) == 0
    assert contents(stopped) == contents(whole)


@pytest.mark.parametrize("done", COMMANDS)
def test_a_finished_run_writes_the_same_again(
    done: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(done, tmp_path, "-q")) == 0
    first = contents(tmp_path)
    assert run(command(done, tmp_path, "--resume")) == 4
    assert "is there already" in capsys.readouterr().err
    assert run(command(done, tmp_path, "--resume", "--force")) == 0
    assert contents(tmp_path) == first


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    (
        (("finetune", "nowhere.pt"), 4, "nowhere.pt"),
        (("finetune", str(MLP), "--resume"), 4, "holds no run. Leave it out to start one."),
        (("finetune", str(MLP), "--lr", "-1"), 2, "`--lr -1.0`: expected a number"),
        (("finetune", str(MLP), "--warmup", "1", "--lr-schedule", "onecycle"), 2, "leave one out"),
        (("finetune", str(MLP), "--augment", "crip"), 2, "crop"),
        (("finetune", str(MLP), "--train-data", "npz:nowhere.npz"), 4, "nowhere.npz"),
        (("finetune", str(MLP), "--keep", "0.5"), 2, "No such option: --keep"),
        (("train",), 2, "`--spec net.toml`, or `--spec torchvision:resnet18`"),
        (("train", "--spec", SPEC, "--schedule", "nun"), 2, "`prunecli schedules` lists them all"),
        (("train", "--spec", SPEC, "--schedule-arg", "x=1"), 2, "No argument `x` in schedule `none`"),
        (("train", "--spec", SPEC, "--keep", "0.5"), 2, "does nothing with `--schedule none`"),
        (("train", "--spec", SPEC, "--preset", "tailor-cifar"), 2, "Did you mean `taylor-cifar`?"),
        (("prune", str(MLP), "--keep", "0.5", "--epochs", "3"), 2, "without `--steps` or `--step-units`"),
        (
            ("prune", str(MLP), *STEPS, "--step-units", "2%"),
            2,
            "`--steps` does nothing beside `--step-units`",
        ),
        (("prune", str(MLP), *STEPS, "--samples", "64"), 2, "`--samples` does nothing beside `--steps`"),
        (("prune", str(MLP), *STEPS, "--dry-run"), 2, "what leaves shows only while training"),
        (("prune", str(MLP), *STEPS, "--reconstruct"), 2, "Say `--no-reconstruct`."),
        (("compress-report", str(MLP), str(MLP), "--train-data", "x"), 2, "No such option: --train-data"),
    ),
)
def test_errors_are_short_and_say_what_to_do(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = () if arguments[0] == "compress-report" else ("--out", str(tmp_path))
    assert run([*arguments, *out]) == code
    printed, err = capsys.readouterr()
    assert not printed
    lines = err[err.index("error: ") :].strip().splitlines()
    assert message in " ".join(lines)
    assert len(lines) <= 2
    assert not contents(tmp_path)


def test_a_pruned_file_brings_its_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(MLP.parent, mine)
    shutil.copy(SAMPLES / "digits.npz", tmp_path)
    assert run(["prune", str(mine / MLP.name), "--keep", "0.5", "--no-onnx", "-q"]) == 0
    pruned = capsys.readouterr().out.strip()
    assert run(["finetune", pruned, *QUICK, "-q"]) == 0  # by model.toml, which lies beside it
    assert capsys.readouterr().out == f"{mine / 'model.pruned.finetuned.safetensors'}\n"
    (mine / "model.toml").rename(mine / "elsewhere.toml")
    again = [*QUICK, "--force"]
    assert run(["finetune", pruned, *again, "-q"]) == 4
    assert "--trust-spec" in capsys.readouterr().err
    assert run(["finetune", pruned, *again, "--trust-spec", "-q"]) == 0
    assert capsys.readouterr().out == f"{mine / 'model.pruned.finetuned.safetensors'}\n"


class Stepping:
    """Stands for time, which goes on by a second whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def told(reporter: progress.Reporter, tick: Callable[..., None]) -> None:
    for epoch in range(1, 4):
        for batch in range(1, 9):
            tick(Tick("training", epoch, 10, batch, 8, 64 * batch, 12.0 / epoch, 0.5 + 0.1 * epoch))
        reporter.progress("accuracy", 1, 2)
        row = EpochRow(epoch, "training", 0.1, 12.0 / epoch, 0.8, 0.4, 0.9, units=1200)
        reporter.epoch(row if epoch < 3 else EpochRow(epoch, "recovery 1", 0.1, 4.0, notes=("cut",)), 10)


def test_a_pipe_gets_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Stepping())
    reporter = progress.Reporter(Shown())
    told(reporter, reporter.tick)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3:] == ["recovery 1:", "epoch  3/10  loss 4.0000  lr 0.1", "  cut"]
    assert "epoch  2/10  loss 6.0000  top-1  80.00 %  test  90.00 %  units 1,200  lr 0.1" in lines
    live = [line for line in lines if line.endswith("/8)")]
    assert 3 <= len(live) <= 20
    assert all("/s  (" in line for line in live[1:])


@pytest.mark.parametrize("width", (40, 80, 100))
def test_the_bar_fits_and_its_text_keeps_its_place(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(progress, "time", Stepping())
    reporter = progress.Reporter(Shown())
    reporter.is_terminal = True
    shown: list[str] = []

    def tick(tick: Any) -> None:
        reporter.tick(tick)
        assert reporter.bar is not None
        (task,) = reporter.bar.tasks
        shown.append(task.description)
        assert (task.completed, task.total) == ((tick.epoch - 1) * 8 + tick.batch, 80)

    told(reporter, tick)
    reporter.progress("accuracy", 1, 2)
    assert reporter.bar is not None
    assert reporter.bar.tasks[0].description.rstrip() == "accuracy 1/2"
    reporter.close()
    lengths = [len(text) for text in shown if "loss 12" not in text]
    assert set(lengths) == {lengths[0]}
    assert max(map(len, shown)) <= max(width - 28, 12)
    assert all(text.startswith("epoch ") for text in shown)


@pytest.mark.parametrize(
    ("done", "total", "line"), ((0, None, "packing"), (3, None, "packing: 3"), (3, 8, "packing: 3/8"))
)
def test_a_stage_without_an_end_is_told_by_its_name(
    done: int,
    total: int | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    progress.Reporter(Shown()).progress("packing", done, total)
    assert capsys.readouterr().err == f"{line}\n"
