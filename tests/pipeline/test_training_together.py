"""Processes that torchrun started train as one does; and what becomes of a run when one of them dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from prunecli.cli.main import run
from tests.several import ROOT, run_several, torchrun

SAMPLES = ROOT / "sample_models"
MODEL = str(SAMPLES / "digits_mlp" / "model.pt")
SPEC = str(SAMPLES / "digits_mlp" / "model.toml")
UNEVEN = (
    f"npz:{SAMPLES}/digits.npz#train[:163]"  # 5 minibatches of 32 and one of 3: some have a part, others none
)
TEST = f"npz:{SAMPLES}/digits.npz#test[:100]"
USUAL = [
    "--train-data",
    UNEVEN,
    "--test-data",
    TEST,
    "--batch-size",
    "32",
    "--threads",
    "1",
    "--no-onnx",
    "-q",
]
DOUBLE = ["--dtype", "float64"]
NET = """
import os, signal
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.passes = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10), 0

    def forward(self, x):
        self.passes += self.training
        if self.training and os.environ.get("RANK") == "1" and self.passes == PASS:
            FAULT
        return self.second(self.first(x.flatten(1)).relu())
"""

SLOWLY = """
import time
from prunecli.training import saving

to_bytes = saving.to_bytes
saving.to_bytes = lambda *run: time.sleep(4) or to_bytes(*run)
"""


def arguments(*settings: str) -> list[str]:
    """Return settings of a schedule as options."""
    return [word for setting in settings for word in ("--schedule-arg", setting)]


def commands_in(folder: Path) -> dict[str, list[str]]:
    """Return what is run alone and shared out, with files that go into the folder."""
    steps = ["--steps", "2", "--keep", "0.5", "--prune-every", "2", "--epochs", "2"]
    new = ["train", "--spec", SPEC, *USUAL, *DOUBLE]
    given = {
        "finetune": ["finetune", MODEL, *USUAL, *DOUBLE, "--epochs", "2", "--accumulate", "4", "--ema", "0.9",
                     "--clip", "0.5", "--augment", "crop=1,flip"],
        "steps": ["prune", MODEL, *USUAL, *DOUBLE, *steps],
        "again": ["prune", MODEL, *USUAL, *DOUBLE, *steps, "--method", "fisher", "--batch-size", "3",
                  "--train-data", f"{UNEVEN[:-6]}[:13]"],
        "contribution": [*new, "--schedule", "contribution", *arguments("warm=1", "every=1"),
                         "--target", "units=85%", "--epochs", "3", "--augment", "mixup=0.4"],
        "weights": [*new, "--granularity", "weight", "--method", "snip", "--ratio", "4", "--epochs", "1"],
        "density": [*new, "--schedule", "activation-density", "--epochs", "2",
                    *arguments("layers=all", "least=2", "generations=1")],
    }  # fmt: skip
    return {name: [*command, "--out", f"{folder}/{name}"] for name, command in given.items()}


def check_together(folder: Path, count: int) -> None:
    """Let several processes, and one, train the same; compare weights, widths and histories."""
    alone, shared = folder / "alone", folder / "shared"
    for made in (alone, shared):
        made.mkdir()
    for name, command in commands_in(alone).items():
        assert run(command) == 0, name
    failing = {
        "diverging": ["finetune", MODEL, *USUAL, "--epochs", "1", "--lr", "1e30", "--out", f"{shared}/far"],
        "differing": [
            "finetune",
            MODEL,
            *USUAL,
            "--epochs",
            "1",
            "--lr",
            "0.{rank}1",
            "--out",
            f"{shared}/two",
        ],
        "drifting": _drifting(shared),
    }
    first, last = run_several({**commands_in(shared), **failing}, shared, count)
    for name in commands_in(shared):
        assert (first[name][0], last[name]) == (0, [0, "", ""]), (name, first[name][2], last[name])
        compare(alone / name, shared / name)
    for name, (code, text) in {
        "diverging": (4, "The loss became"),
        "differing": (4, "Process 1 has another choice of settings than process 0"),
        "drifting": (
            1,
            "Process 1 has other parameters than process 0 after epoch 1: the model changes them",
        ),
    }.items():
        assert first[name][0] == last[name][0] == code, name
        assert text in first[name][2], name
    assert "The first that puts out" not in first["diverging"][2]
    assert not (shared / "two").exists()


def _drifting(folder: Path) -> list[str]:
    fault = "self.first.weight.data.add_(1)"
    return ["finetune", *net_in(folder, fault, 2), *USUAL, "--epochs", "1", "--out", f"{folder}/drifted"]


def net_in(folder: Path, fault: str, at: int) -> list[str]:
    """Write a network of which the second process does something at a pass; return how to open it."""
    source = NET.replace("FAULT", fault).replace("PASS", str(at))
    (folder / "net.py").write_text(source)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    torch.manual_seed(0)
    torch.save(namespace["Net"]().state_dict(), folder / "net.pt")
    return [f"{folder}/net.pt", "--spec", f"{folder}/net.py:Net", "--input", "1x8x8"]


def compare(one: Path, other: Path) -> None:
    """Compare two runs: the same widths, weights up to rounding, and accuracies."""
    (file,) = one.glob("*.safetensors")
    ours, theirs = load_file(other / file.name), load_file(file)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-7, msg=f"{one.name}: {name}")
    rows, expected = (
        [
            json.loads(line)
            for line in next(each.glob("*.run")).joinpath("history.jsonl").read_text().splitlines()
        ]
        for each in (other, one)
    )
    for row, like in zip(rows, expected, strict=True):
        assert {name: approximately(value) for name, value in like.items()} == row


def approximately(value: Any) -> Any:
    """Return what equals a value up to rounding."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, (float, dict)) else value


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    check_together(tmp_path, 2)


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path: Path) -> None:
    check_together(tmp_path, 4)


@pytest.mark.parametrize(
    ("fault", "said"),
    (
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "error: Another of the 2 processes failed, was killed, or said nothing for 30 minutes",
            id="killed",
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGTERM)",
            "stopped in epoch 2, minibatch 4; the same command with `--resume` goes on",
            id="asked to end",
            marks=pytest.mark.slow,
        ),
    ),
)
def test_a_run_goes_on_when_a_process_was_lost(fault: str, said: str, tmp_path: Path) -> None:
    """In one process: how many there are changes nothing."""
    command = ["finetune", *net_in(tmp_path, fault, 9), *USUAL, *DOUBLE, "--epochs", "3"]  # in epoch 2
    assert run([*command, "--out", f"{tmp_path}/alone"]) == 0
    done = torchrun(2, "-m", "prunecli", *command, "--out", f"{tmp_path}/shared")
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""
    assert {path.name for path in (tmp_path / "shared").rglob("*") if path.is_file()} == {
        "state.safetensors", "history.jsonl", "last.safetensors", "best.safetensors",
    }  # fmt: skip
    assert run([*command, "--out", f"{tmp_path}/shared", "--resume"]) == 0
    compare(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.slow
def test_no_process_ends_while_the_first_one_still_writes(tmp_path: Path) -> None:
    """Or torchrun asks the first one to end again, which it does at once."""
    opened = net_in(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", 9)
    net = tmp_path / "net.py"
    everywhere = net.read_text().replace('os.environ.get("RANK") == "1" and ', "")
    net.write_text(f"{SLOWLY}{everywhere}")
    done = torchrun(2, "-m", "prunecli", "finetune", *opened, *USUAL, "--epochs", "3", "--out", str(tmp_path))
    assert "stopped in epoch 2, minibatch 3; the same command with `--resume` goes on" in done.stderr
    with safe_open(next(tmp_path.rglob("state.safetensors")), "pt") as state:
        assert json.loads(state.metadata()["prunecli.run"])["place"]["step"] == 9
