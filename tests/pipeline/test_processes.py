"""What torchrun starts does what one process does, shared out; and ends, whatever becomes of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunecli.cli.main import run
from prunecli.errors import UsageError
from prunecli.importance import Observations
from prunecli.importance.context import Merge, State
from prunecli.pipeline.processes import ALONE, Processes, joined, refuse_shared, started
from tests.several import run_several, torchrun

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "sample_models" / "digits_mlp" / "model.pt")
SAMPLE = ("--samples", "300", "--threads", "1")  # 5 micro-batches: one process has more than the other
METHODS = ("taylor-fo", "fisher", "magnitude")
WEIGHT = ("--granularity", "weight")
OF_WEIGHTS = ("snip", "grasp", "obd", "activation", "magnitude")
FAULTY = """
import os, signal, time
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x):
        if x.device.type != "meta" and os.environ.get("RANK") == "1" and len(x) > 2:
            FAULT
        return self.second(self.first(x).relu())
"""


def commands_in(folder: Path) -> dict[str, list[str]]:
    """Return what is run, with files that go into the folder."""
    plan = ["--keep", "0.5", "--no-onnx", "--threads", "1"]
    methods = [word for name in METHODS for word in ("--method", name)]
    of_weights = [word for name in OF_WEIGHTS for word in ("--method", name)]
    return {
        "score": ["score", MODEL, *SAMPLE, *methods, "--out", f"{folder}/scores.safetensors", "-q"],
        "prune": ["prune", MODEL, *SAMPLE, *plan, "--out", str(folder), "--plan", f"{folder}/plan.json"],
        "few": ["prune", MODEL, "--samples", "9", *plan, "--dry-run", "--plan", f"{folder}/few.json"],
        "weights": [
            "score",
            MODEL,
            *SAMPLE,
            *WEIGHT,
            *of_weights,
            "--out",
            f"{folder}/weights.safetensors",
            "-q",
        ],
        "masks": [
            "prune",
            MODEL,
            *WEIGHT,
            "--method",
            "snip",
            "--score-batches",
            "3",
            *plan,
            "--out",
            f"{folder}/masks",
        ],
        "apply": ["prune", MODEL, "--apply", f"{folder}/plan.json", "--no-onnx", "--out", f"{folder}/again"],
    }


def shared_out(folder: Path, count: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return what every command came to: in the first of so many processes, and in the last."""
    more = {
        "differing": ["score", MODEL, "--samples", "9", "--seed", "{rank}"],
        "unknown": ["score", MODEL, "--method", "nosuch"],
        "misused": ["score", MODEL, "--nosuch"],
        "sweep": ["sweep", MODEL, "--keep", "0.5"],
    }
    return run_several({**commands_in(folder), **more}, folder, count)


def check_shared(folder: Path, count: int) -> None:
    """Let several processes, and one, do the same; compare what they wrote, and said."""
    alone, shared = folder / "alone", folder / "shared"
    for made in (alone, shared):
        made.mkdir()
    assert {run(command) for command in commands_in(alone).values()} == {0}
    first, last = shared_out(shared, count)
    for name in (
        "plan.json",
        "few.json",
        *(f"{each}model.pruned.safetensors" for each in ("", "again/", "masks/")),
    ):
        assert (shared / name).read_bytes() == (alone / name).read_bytes(), name
    for name in (*(f"scores.{each}" for each in METHODS), *(f"weights.{each}" for each in OF_WEIGHTS)):
        one, several = (load_file(where / f"{name}.safetensors") for where in (alone, shared))
        for group, values in one.items():
            torch.testing.assert_close(several[group], values, rtol=1e-12, atol=1e-18, msg=f"{name}: {group}")
    _check_told(first, last, count)


def _check_told(first: Mapping[str, list[Any]], last: Mapping[str, list[Any]], count: int) -> None:
    """Check that the first process says everything, and the others nothing but how they failed alone."""
    for name in ("score", "prune", "few", "weights", "masks", "apply"):
        assert (first[name][0], last[name]) == (0, [0, "", ""]), name
    assert f"1 batches of 64 samples for {count} processes: {count - 1} have nothing" in first["few"][2]
    assert f"cpu, {count} processes" in first["prune"][2]
    assert "parity" in first["prune"][1]
    assert first["differing"][0] == last["differing"][0] == 4
    assert "Process 1 has another device, precision or seed than process 0" in first["differing"][2]
    for name, text in {
        "unknown": "no method `nosuch`",
        "misused": "No such option: --nosuch",
        "sweep": f"`prunecli sweep` runs in one process, and torchrun started {count}",
    }.items():
        assert (first[name][0], last[name][0]) == (2, 2)
        assert text in first[name][2]
        assert f"process {count - 1} of {count}: {first[name][2].partition('error: ')[2]}" in last[name][2]
    assert "said nothing for 0.0333333 minutes. What it" in first["silent"][1]


def test_two_processes_prune_as_one(tmp_path: Path) -> None:
    check_shared(tmp_path, 2)


@pytest.mark.slow
def test_four_processes_prune_as_one(tmp_path: Path) -> None:
    check_shared(tmp_path, 4)


@pytest.mark.parametrize(
    ("fault", "command", "said"),
    (
        pytest.param(
            "time.sleep(2), os.kill(os.getpid(), signal.SIGKILL)",
            "prune --keep 0.5",
            "error: Another of the 2 processes failed, was killed, or said nothing for 30 minutes",
            id="killed",
        ),
        pytest.param(
            "raise ValueError('no such luck')",
            "prune --keep 0.5",
            "error: process 1 of 2: Micro-batch 1 (inputs [4, 8])",
            id="failed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "score --shard",
            "error: Another of the 2 processes failed, was killed, or said nothing for 30 minutes",
            id="killed while parted",
            marks=pytest.mark.slow,
        ),
    ),
)
def test_the_others_end_when_one_process_does(fault: str, command: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FAULTY.replace("FAULT", fault))
    namespace: dict[str, Any] = {}
    exec(FAULTY.replace("FAULT", "pass"), namespace)
    torch.save(namespace["Net"]().state_dict(), tmp_path / "net.pt")
    there = set(tmp_path.iterdir())
    done = torchrun(
        2, "-m", "prunecli", *command.split(), f"{tmp_path}/net.pt", "--spec", f"{tmp_path}/net.py:Net",
        "--input", "8", "--data", "random:16", "--batch-size", "4",
    )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == there


def test_later_micro_batches_count_whoever_saw_them() -> None:
    early, late = (
        Observations(
            {"m": State({"g": torch.tensor([value]).double()}, Merge.LAST)}, batches=1, samples=4, last=number
        )
        for value, number in ((1.0, 1), (2.0, 2))
    )
    assert late.merged(early).states["m"].values["g"] == early.merged(late).states["m"].values["g"] == 2
    assert late.merged(early).last == 2


def test_without_torchrun_there_is_one_process() -> None:
    assert started() == ALONE
    with joined() as processes:
        assert (processes.is_first, processes.are_several, processes.share().count) == (True, False, 1)
        processes.agree({"plan": 1})
        processes.dismiss_others()


def test_what_is_not_shared_is_refused() -> None:
    refuse_shared(ALONE, "`prunecli sweep`")
    refuse_shared(Processes(0, 2), None)
    with pytest.raises(UsageError, match="`prunecli sweep` runs in one process, and torchrun started 2"):
        refuse_shared(Processes(1, 2), "`prunecli sweep`")
