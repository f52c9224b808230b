"""Runs on disk: killed, interrupted, taken up again, refused; and which of their models is taken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import prunecli
from prunecli.cli.main import run
from prunecli.data import main_output
from prunecli.errors import OutputError
from prunecli.pipeline.keeping import HISTORY, LAST, LOCK, check_run, owned
from prunecli.pipeline.settings import Run
from prunecli.training.distillation import distance

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_models"
QUICK = ["--epochs", "3", "--threads", "1", "--no-onnx", "--batch-size", "256", "--device", "cpu", "-q"]
STEPS = ["--steps", "3", "--keep", "0.5", "--prune-every", "3", "--score-momentum", "0.5"]

DYING = """
import os, signal, sys
from prunecli.cli import progress
from prunecli.pipeline import keeping
from prunecli.cli.main import main

keeping.SECONDS_BETWEEN_SAVES = 0.0  # after every minibatch
number, at = signal.Signals[sys.argv.pop(1)], int(sys.argv.pop(1))
before, done = keeping.Keeper.tick, 0

def tick(self, tick):
    global done
    done += 1
    if done == at:
        os.kill(os.getpid(), number)
    before(self, tick)

keeping.Keeper.tick = tick
main()
"""


def start(
    arguments: list[str], folder: Path, number: str = "", at: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command; with `number`, let it get that signal at a minibatch."""
    program = ["-c", DYING, number, str(at)] if number else ["-m", "prunecli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """Return a copy of a sample model, to write beside."""
    shutil.copytree(SAMPLES / "digits_mlp", tmp_path / "digits_mlp")
    shutil.copy(SAMPLES / "digits.npz", tmp_path)
    return tmp_path / "digits_mlp"


COMMANDS = {
    "train": (["train", "--spec", "model.toml", "--ema", "0.9", "--accumulate", "2"], "model.trained"),
    "finetune": (["finetune", "model.pt", "--label-smoothing", "0.1"], "model.finetuned"),
    "prune": (["prune", "model.pt", *STEPS], "model.pruned"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_in_the_middle_of_an_epoch_it_ends_in_the_same_file(
    name: str, mlp: Path, tmp_path: Path
) -> None:
    command, stem = COMMANDS[name]
    whole = start([*command, *QUICK, "--out", str(tmp_path / "whole")], mlp)
    assert whole.returncode == 0, whole.stderr
    for at in (3, 8):  # minibatches; an epoch has six
        folder = tmp_path / f"killed{at}"
        killed = start([*command, *QUICK, "--out", str(folder)], mlp, "SIGKILL", at)
        assert killed.returncode == -signal.SIGKILL
        assert not (folder / f"{stem}.safetensors").exists()
        again = start([*command, *QUICK, "--out", str(folder), "--resume"], mlp)
        assert again.returncode == 0, again.stderr
        ours, theirs = ((each / f"{stem}.safetensors").read_bytes() for each in (folder, tmp_path / "whole"))
        assert ours == theirs
        lines = [
            (each / f"{stem}.run" / "history.jsonl").read_text() for each in (folder, tmp_path / "whole")
        ]
        assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)))
def test_a_signal_keeps_the_run_and_says_how_to_go_on(
    number: str, code: int, mlp: Path, tmp_path: Path
) -> None:
    command = ["finetune", "model.pt", *QUICK]
    stopped = start(command, mlp, number, 8)
    assert stopped.returncode == code
    assert "--resume" in stopped.stderr
    assert "epoch 2, minibatch 3" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    again = start([*command, "--resume"], mlp)
    assert again.returncode == 0, again.stderr
    whole = start([*command, "--out", str(tmp_path / "whole")], mlp)
    assert whole.returncode == 0
    assert load_same(mlp / "model.finetuned.safetensors", tmp_path / "whole" / "model.finetuned.safetensors")


def load_same(first: Path, second: Path) -> bool:
    """Return whether two files hold the same tensors, bit by bit."""
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def finished(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a run of one epoch."""
    monkeypatch.chdir(mlp)
    assert run(FINETUNE) == 0
    return mlp


FINETUNE = ["finetune", "model.pt", *QUICK, "--epochs", "1"]


def test_other_settings_are_refused_by_name(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = (
        ["--lr", "0.5"],
        ["--batch-size", "128"],
        ["--seed", "4"],
        ["--ema", "0.5"],
        ["--optimizer", "adamw"],
    )
    for other in others:
        assert run([*FINETUNE, "--force", "--resume", *other]) == 2
        name = other[0].lstrip("-").replace("-", "_")
        assert f"was started with {name} " in " ".join(capsys.readouterr().err.split())
    assert run([*FINETUNE, "--force", "--resume"]) == 0


def test_a_run_is_not_started_over_by_accident(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.finetuned.safetensors", "model.finetuned.json"):
        (finished / name).unlink()
    assert run(FINETUNE) == 4
    assert "Go on with `--resume`, or start over with `--force`" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(finished / "model.finetuned.run")
    assert run([*FINETUNE, "--resume"]) == 4
    assert "holds no run" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("damage", ("cut short", "empty", "overwritten"))
def test_a_damaged_state_is_one_line(finished: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = finished / "model.finetuned.run" / "state.safetensors"
    content = state.read_bytes()
    state.write_bytes({"cut short": content[:-100], "empty": b"", "overwritten": b"x" * len(content)}[damage])
    capsys.readouterr()
    assert run([*FINETUNE, "--force", "--resume"]) == 4
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "Traceback" not in said
    assert "--force" in said


@pytest.mark.parametrize("physical", ("0", "1", "2"))
def test_the_best_epoch_is_taken_from_a_network_that_shrank(
    physical: str, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mlp)
    command = ["prune", "model.pt", *STEPS, *QUICK, "--epochs", "6", "--physical-every", physical]
    assert run([*command, "--take", "best", "--lr", "0.3"]) == 0
    report = json.loads((mlp / "model.pruned.json").read_text())
    rows = report["training"]["rows"]
    after = [row for row in rows if row["units"] == rows[-1]["units"] and row["epoch"] > 1]
    best = max(after, key=lambda row: (row["test_top1"], -row["epoch"]))
    assert load_same(mlp / "model.pruned.safetensors", mlp / "model.pruned.run" / "best.safetensors")
    last = mlp / "model.pruned.run" / "last.safetensors"
    if best is not rows[-1]:
        assert not load_same(mlp / "model.pruned.safetensors", last)
    shapes = {name: tensor.shape for name, tensor in load_file(last).items()}
    assert shapes == {n: t.shape for n, t in load_file(mlp / "model.pruned.safetensors").items()}
    loaded = prunecli.load(last, spec=mlp / "model.toml")
    assert loaded(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_answers_are_compared_at_a_temperature() -> None:
    """T^2 sum p log(p / q), softened by T, averaged over samples."""
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = ((each / 3).exp() / (each / 3).exp().sum(1, keepdim=True) for each in (theirs, ours))
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    labels = torch.zeros(5, dtype=torch.int64)
    assert distance(ours, theirs, labels, 3.0) == pytest.approx(expected.item(), abs=1e-12)
    assert distance(ours, ours, labels, 3.0) == pytest.approx(0.0, abs=1e-12)


def test_distillation_mixes_both_losses(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One minibatch of all samples with a rate of 0: the loss that is told is that of the start."""
    monkeypatch.chdir(mlp)
    quick = [*QUICK, "--epochs", "1", "--lr", "0", "--batch-size", "100000", "--label-smoothing", "0.2"]
    taught = ["--distill", "model.pt", "--distill-weight", "0.3", "--distill-temperature", "2"]
    assert run(["prune", "model.pt", "--keep", "0.5", "--method", "magnitude", "--no-onnx", "-q"]) == 0
    assert run(["finetune", "model.pruned.safetensors", "--spec", "model.toml", *quick, *taught]) == 0
    (found,) = json.loads((mlp / "model.pruned.finetuned.json").read_text())["training"]["rows"]
    spec = prunecli.read_spec("model.toml")
    student, teacher = (
        prunecli.load("model.pruned.safetensors", spec="model.toml"),
        prunecli.load_model(spec, "model.pt"),
    )
    dataset = prunecli.data.open_data(spec.data.train, spec)
    inputs, targets = dataset.batch(range(len(dataset)))
    with torch.no_grad():
        ours, theirs = main_output(student(*inputs)), main_output(teacher(*inputs))
    own = cross_entropy(ours, targets, label_smoothing=0.2)
    assert found["loss"] == pytest.approx(
        (0.7 * own + 0.3 * distance(ours, theirs, targets, 2.0)).item(), rel=1e-5
    )


@pytest.mark.parametrize("option", (["--take", "best"], ["--patience", "2"]))
def test_the_best_epoch_needs_test_data(
    option: list[str], mlp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mlp)
    lines = (mlp / "model.toml").read_text().splitlines(keepends=True)
    (mlp / "model.toml").write_text("".join(line for line in lines if not line.startswith("test = ")))
    assert run([*FINETUNE, *option]) == 4
    assert "names none under `[data] test`" in " ".join(capsys.readouterr().err.split())


def test_a_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "net.run"
    with owned(folder), pytest.raises(OutputError, match="Another run is going on"), owned(folder):
        pass
    with owned(folder):
        assert (folder / LOCK).is_file()
    assert not folder.exists()  # nothing was kept


def test_a_run_that_did_not_get_far_is_no_dead_end(tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_bytes(b"")  # killed within the first epoch
    check_run(tmp_path, Run(), force=False)
    with pytest.raises(OutputError, match="holds no run. Leave it out to start one"):
        check_run(tmp_path, Run(resume=True), force=False)
    (tmp_path / LAST).write_bytes(b"1")  # killed before its state was written
    with pytest.raises(OutputError, match="holds no run. Start over with `--force` instead"):
        check_run(tmp_path, Run(resume=True), force=False)
    with pytest.raises(OutputError, match="It cannot go on; start over with `--force`"):
        check_run(tmp_path, Run(), force=False)
    check_run(tmp_path, Run(), force=True)


def test_a_folder_stays_with_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "net.run"
    with owned(folder):
        (folder / LAST).write_bytes(b"kept")
    assert [path.name for path in folder.iterdir()] == [LAST]


@pytest.mark.parametrize("name", (LOCK, LAST, "so-far.html"))
def test_a_link_in_the_folder_of_a_run_leads_nowhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "net.run").mkdir()
    (tmp_path / "net.run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link, and files of a run"), owned(tmp_path / "net.run"):
        pass
    assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(OutputError, match="cannot be written"), owned(tmp_path):
        pass


def test_a_lock_whose_owner_took_it_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (tmp_path / LOCK).unlink())
    with pytest.raises(OutputError, match="Another run is going on"), owned(tmp_path):
        pass
