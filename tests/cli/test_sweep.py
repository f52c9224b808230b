"""`prunecli sweep` on the command line: streams, files, the table, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prunecli.cli.main import run
from prunecli.cli.options import Shown
from prunecli.cli.sweep import render
from prunecli.report import Change
from prunecli.report.sweep import SweepReport, SweepRow, TrialFigures

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP = SAMPLES / "digits_mlp" / "model.pt"
SPEC = str(MLP.with_suffix(".toml"))
QUICK = ("--device", "cpu", "--threads", "1", "--batch-size", "256")
WEIGHTS = ("--granularity", "weight", "--method", "magnitude,random", "--ratio", "1,4", "--seeds", "2")


def command(folder: Path, *more: str) -> list[str]:
    return ["sweep", str(MLP), *WEIGHTS, *QUICK, "--out", str(folder), *more]


def report() -> SweepReport:
    """Return one of everything: a spread, a scope, a collapse, a failure."""
    rows = []
    for name, scope, ratio in (
        ("magnitude", "global", 2),
        ("magnitude", "global", 16),
        ("magnitude", "layer", 16),
        ("grasp", "global", 16),
    ):
        for seed in (0, 1, 2):
            collapsed = ("features.3", "fc1") if (scope, ratio, seed) == ("global", 16, 1) else ()
            figures = TrialFigures(
                Change(431_080, 431_080 // ratio),
                Change(2_293_000, 2_293_000 // (ratio - 1)),
                Change(430_500, 431_080 // ratio - 580),
                ratio * (1.0 if name == "magnitude" else 0.51),
                collapsed,
                10_000,
                0.04 * ratio + 0.001 * seed,
                0.99 - 0.01 * ratio + 0.0011 * seed,
                0.999,
            )
            failed = name == "grasp" and seed == 2
            error = "The loss depends on none of the prunable weights." if failed else None
            rows.append(
                SweepRow(name, scope, f"ratio={ratio}", ratio, seed, None if failed else figures, error)
            )
    return SweepReport("mnist_cnn", "weight", tuple(rows), {"epochs": 5})


@pytest.mark.parametrize("columns", (80, 110, None))
def test_table(
    columns: int | None, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    text = render(report(), [Path("out/mnist_cnn.sweep.json"), Path("out/mnist_cnn.sweep.csv")], Shown())
    golden(f"sweep-{columns or 'pipe'}.txt", text)
    if columns:
        assert max(map(len, text.splitlines())) <= columns


def test_a_sweep_says_what_it_does_and_writes_four_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tmp_path)) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == [f"[{done}/6" for done in range(1, 7)]
    assert lines[0].startswith("[1/6] dense, seed 0: top-1 ")
    assert "magnitude  ratio=4" in out
    assert "mean ± sample standard deviation over 2 seeds" in " ".join(out.split())
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert names == [f"model.sweep.{kind}" for kind in ("csv", "html", "json", "svg")]
    assert all(str(tmp_path / name) in out for name in names)
    assert run(command(tmp_path)) == 4
    assert "is there already" in capsys.readouterr().err
    assert run(command(tmp_path, "--force")) == 0
    assert "6 of 6 trials are there already" in capsys.readouterr().err


def test_every_format_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(tmp_path, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "model.sweep.json").read_text())
    assert run(command(tmp_path, "--force", "--format", "csv")) == 0
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 1 + 2 * 2 * 2
    assert run(command(tmp_path, "--force", "--format", "md")) == 0
    assert capsys.readouterr().out.startswith("### Sweep of model.pt\n\n| method | budget |")
    assert run(command(tmp_path, "--force", "-q")) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'model.sweep.json'}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    (
        (("--keep", "0.5"), 2, "Say what to compare: `--method"),
        (("--method", "magnitude"), 2, "Say which budgets to go through: `--keep 1,0.75,0.5`"),
        (
            ("--method", "magnitude", "--ratio", "2"),
            2,
            "`--ratio` does nothing without `--granularity weight`",
        ),
        (("--method", "magnitude", "--keep", "2"), 2, "the share of units to keep is above 0 and at most 1"),
        (
            ("--method", "magnitude", "--keep", "0.5", "--lr", "1"),
            2,
            "`--lr` does nothing without `--epochs`",
        ),
        (("--method", "nun", "--keep", "0.5"), 2, "nun"),
        (("--method", "magnitude", "--keep", "0.5", "--init", "xavier"), 2, "is for new models"),
        (("--method", "magnitude", "--keep", "0.5", "--seeds", "0"), 2, "Invalid value for '--seeds'"),
        (("--method", "magnitude", "--keep", "0.5", "--mask-rule", "exact"), 2, "`--mask-rule` does nothing"),
    ),
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["sweep", str(MLP), *arguments, "--out", str(tmp_path)]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_without_a_checkpoint_or_a_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "--method", "magnitude", "--keep", "0.5"]) == 2
    assert run(["sweep", "--at-init", "--method", "magnitude", "--keep", "0.5"]) == 2
    assert "--spec net.toml" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent")
def test_interrupted_with_two_processes_it_leaves_none_and_goes_on_to_the_same(tmp_path: Path) -> None:
    def arguments(folder: Path) -> list[str]:
        model = ["--at-init", "--spec", SPEC, "--epochs", "3", "--jobs", "2", "--device", "cpu"]
        return [sys.executable, "-m", "prunecli", "sweep", *model, *WEIGHTS, "--out", str(folder)]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run(arguments(whole), check=True, capture_output=True)
    process = subprocess.Popen(arguments(stopped), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[1/6]"):
            break
    children = [int(child) for child in _children(process.pid)]
    os.kill(process.pid, signal.SIGINT)
    rest = process.communicate()[1]
    assert process.returncode == 130
    assert "the same command goes on from there" in rest
    assert "Traceback" not in rest
    until = time.monotonic() + 10
    while (left := list(filter(_runs, children))) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left
    done = subprocess.run(arguments(stopped), check=True, capture_output=True, text=True)
    assert "of 6 trials are there already" in done.stderr
    for kind in ("json", "csv", "html", "svg"):
        name = f"model.sweep.{kind}"
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def _runs(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"  # over, but not fetched


def _children(parent: int) -> list[str]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return path.read_text().split() if path.exists() else []
