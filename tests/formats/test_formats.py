"""Files of every format version are read for ever; later ones are refused. See the READMEs beside."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import prunecli
from prunecli.cli.main import run
from prunecli.importance.scores import Scores
from prunecli.plan import Plan
from prunecli.report import Report
from prunecli.report.sweep import SweepReport
from prunecli.training import saving

FIRST = Path(__file__).parent / "version_1"
OUTPUTS = {
    "pruned": ((-0.0911787, -0.2094285, 0.0636529), (0.0798944, 0.0291206, 0.0827644)),
    "half": ((-0.1035434, -0.1908351, 0.1684965), (0.1172125, 0.1204893, 0.0805010)),
    "masked": ((-0.2143209, -0.3153948, 0.1069989), (0.0354719, 0.0833087, 0.0704401)),
}
"""What the models put out for `torch.linspace(-1, 1, 32)` as two samples, when the files were made."""
PRUNE = ("prune", "net.safetensors", "--spec", "net.toml", "--no-onnx", "--out", "new", "-q")
RESUME = ("finetune", "net.safetensors", "--epochs", "2", "--lr", "0.1", "--no-onnx", "--out", "tuned")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a copy of the files."""
    shutil.copytree(FIRST, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


@pytest.mark.parametrize("name", OUTPUTS)
def test_models_compute_what_they_did(name: str) -> None:
    model = prunecli.load(FIRST / f"{name}.safetensors", FIRST / "net.toml")
    output = model(torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4))
    torch.testing.assert_close(output, torch.tensor(OUTPUTS[name]), rtol=1e-5, atol=1e-6)
    held = {tensor.dtype for tensor in load_file(FIRST / f"{name}.safetensors").values()}
    assert held == {torch.bfloat16 if name == "half" else torch.float32, torch.int64}


def test_a_masked_file_keeps_its_masks(here: Path) -> None:
    words = ("finetune", "masked.safetensors", "--epochs", "1", "--lr", "0.1", "--no-onnx", "--out", "new")
    assert run([*words, "--spec", "net.toml", "-q"]) == 0
    before, after = (
        load_file(path)
        for path in (here / "masked.safetensors", here / "new" / "masked.finetuned.safetensors")
    )
    for name in ("0.weight", "4.weight"):
        assert not after[name][before[name] == 0].any()
        assert not torch.equal(after[name], before[name])


def test_plans_and_scores_are_read(here: Path) -> None:
    plan = Plan.from_json((here / "plan.json").read_text())
    assert (plan.method, plan.keep, plan.widths) == ("taylor-fo", {"0": (1, 2)}, {"0": 4})
    scores = Scores.from_bytes((here / "scores.safetensors").read_bytes())
    assert {name: values.shape for name, values in scores.by_group.items()} == {"0": (4,)}
    assert scores.by_group["0"].argsort(descending=True)[:2].sort().values.tolist() == [1, 2]
    for choice in (("--apply", "plan.json"), ("--scores", "scores.safetensors", "--keep", "0.5")):
        assert run([*PRUNE, *choice, "--force"]) == 0
        found, golden = (load_file(path) for path in ("new/net.pruned.safetensors", "pruned.safetensors"))
        assert all(torch.equal(found[name], tensor) for name, tensor in golden.items())


def test_reports_are_read_and_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report.from_json((here / "report.json").read_text())
    params = report.totals.params
    assert (report.title, params.before, params.after) == ("net.safetensors", 243, 123)
    assert [check.name for check in report.parity] == ["structure", "numbers"]
    sweep = SweepReport.from_json((here / "sweep.json").read_text())
    assert [(row.method, row.seed, row.error) for row in sweep.rows] == [
        ("random", 0, None),
        ("random", 1, None),
    ]
    words = ("compress-report", "report.json", "--sweep", "sweep.json", "--format", "md")
    assert run([*words, "--baseline", "report.json", "--fail-if", "params_ratio>baseline"]) == 0
    assert "243" in capsys.readouterr().out


def test_a_run_is_taken_up(here: Path) -> None:
    shutil.copytree(here / "run", here / "tuned" / "net.finetuned.run")
    state = saving.from_bytes((here / "run" / "state.safetensors").read_bytes(), "state")
    assert state.settings["epochs"] == 2
    assert run([*RESUME, "--resume", "--take", "best", "-q"]) == 0
    best, found = (load_file(path) for path in ("run/best.safetensors", "tuned/net.finetuned.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in best.items())


def in_json(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))


def in_metadata(path: Path) -> None:
    with safe_open(path, "pt") as file:
        ((name, text),) = file.metadata().items()
    text, count = re.subn(r'"(format|version)": ?[12](?=[,}])', r'"\1": 99', text, count=1)
    assert count == 1
    save_file(load_file(path), path, {name: text})


LATER = {
    "pruned.safetensors": (in_metadata, ("inspect", "pruned.safetensors", "--spec", "net.toml")),
    "masked.safetensors": (in_metadata, ("inspect", "masked.safetensors", "--spec", "net.toml")),
    "plan.json": (in_json, (*PRUNE, "--apply", "plan.json")),
    "scores.safetensors": (in_metadata, (*PRUNE, "--keep", "0.5", "--scores", "scores.safetensors")),
    "report.json": (in_json, ("compress-report", "report.json")),
    "sweep.json": (in_json, ("compress-report", "report.json", "--sweep", "sweep.json", "--format", "md")),
    "run/state.safetensors": (in_metadata, (*RESUME, "--resume")),
}


@pytest.mark.parametrize("name", LATER)
def test_files_of_a_later_version_are_refused(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change: Callable[[Path], None] = LATER[name][0]
    change(here / name)
    shutil.copytree(here / "run", here / "tuned" / "net.finetuned.run")
    assert run(list(LATER[name][1])) == 4
    error = capsys.readouterr().err.rpartition("error: ")[2].strip()
    assert re.search(
        r"(format|version)`?(:| is)?( found)? 99, (but )?this prunecli reads( up to)? [12]\b", error
    ), error
    assert "\n" not in error
