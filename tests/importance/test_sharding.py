"""Networks that are parted among processes score as they do in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunecli.cli.main import run
from prunecli.importance.sharing import in_step
from tests.several import ROOT, run_several

MLP = str(ROOT / "sample_models" / "digits_mlp" / "model.pt")
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    '''A residual stage with a normalisation, torch's attention, a tied layer, a buffer that no file has.'''

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 8))
        self.once, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.once.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        self.mlp, self.head = nn.Linear(8, 12), nn.Linear(12, 10)

    def forward(self, images):
        x = self.norm(self.stem(images)).relu()
        x = x + self.outer(self.inner(x).relu())
        tokens = x.flatten(2).mT[:, ::8] + self.shift
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens + self.again(self.once(tokens).relu()) * self.scale
        return self.head(self.mlp(tokens.mean(1)).relu())

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.lstm(images.flatten(1, 2))[0][:, -1])
"""
METHODS = ("taylor-fo", "fisher", "taylor-output", "magnitude", "fpgm")
OF_LINEAR = ("activation-density", "contribution", "i-spasp", "lrp")


def chosen(methods: tuple[str, ...]) -> list[str]:
    """Return methods as options."""
    return [word for name in methods for word in ("--method", name)]


def write_nets(folder: Path) -> None:
    """Write networks, and checkpoints of random weights."""
    (folder / "net.py").write_text(SOURCE)
    namespace: dict[str, Any] = {}
    exec(SOURCE, namespace)
    for name, dtype in (("Net", torch.float32), ("Net", torch.bfloat16), ("Recurrent", torch.float32)):
        torch.manual_seed(1)
        made = namespace[name]().to(dtype)
        tensors = {each: tensor.clone() for each, tensor in made.state_dict().items()}
        save_file(tensors, folder / f"{name}.{str(dtype)[6:]}.safetensors")


def commands_in(folder: Path, nets: Path) -> dict[str, list[str]]:
    """Return what is scored, with files that go into the folder: 5 micro-batches, the last one smaller."""
    data = ["--data", f"npz:{ROOT}/sample_models/digits.npz#train", "--input", "1x8x8"]
    usual = ["--samples", "70", "--batch-size", "16", "--threads", "1", "-q"]
    own = [*data, "--spec", f"{nets}/net.py:Net", *usual, *chosen(METHODS)]
    given = {
        "double": [f"{nets}/Net.float32.safetensors", *own, "--dtype", "float64"],
        "half": [f"{nets}/Net.bfloat16.safetensors", *own],
        "linear": [MLP, *usual, *chosen(OF_LINEAR)],
        "few": [MLP, *usual[2:], "--samples", "9", *chosen(("taylor-fo", "magnitude"))],
    }
    return {name: ["score", *words, "--out", f"{folder}/{name}.safetensors"] for name, words in given.items()}


def check_parted(folder: Path, count: int) -> None:
    """Let one process score networks whole, and several parts of them; compare."""
    alone, shared = folder / "alone", folder / "shared"
    for made in (alone, shared):
        made.mkdir()
    write_nets(folder)
    for name, command in commands_in(alone, folder).items():
        assert run(command) == 0, name
    more = {
        "gradients": ["score", MLP, "--method", "taylor-so"],
        "weights": ["score", MLP, "--granularity", "weight", "--method", "magnitude"],
        "recurrent": [
            "score", f"{folder}/Recurrent.float32.safetensors", "--spec", f"{folder}/net.py:Recurrent",
            "--input", "1x8x8", "--method", "magnitude",
        ],
    }  # fmt: skip
    commands = {name: [*each, "--shard"] for name, each in {**commands_in(shared, folder), **more}.items()}
    first, last = run_several(commands, shared, count)
    for name in commands_in(shared, folder):
        assert (first[name][0], last[name]) == (0, [0, "", ""]), first[name]
    files = sorted(alone.glob("*.safetensors"))
    assert len(files) == 2 * len(METHODS) + len(OF_LINEAR) + 2
    for file in files:
        within = 1e-12 if file.name.startswith("double") else 2e-5
        for group, values in (ours := load_file(file)).items():
            found = load_file(shared / file.name)
            assert found.keys() == ours.keys()
            largest = float(values.abs().max())
            torch.testing.assert_close(
                found[group], values, rtol=within, atol=within * largest, msg=f"{file.name}: {group}"
            )
    for name, (code, text) in {
        "gradients": (2, "`--shard` and `--method taylor-so`: it needs gradients of whole parameters"),
        "weights": (2, "`--shard` does nothing with `--granularity weight`"),
        "recurrent": (5, "`--shard`: `lstm` (LSTM) keeps its parameters in a list of its own"),
    }.items():
        assert first[name][0] == code, first[name]
        assert text in first[name][2]


def test_two_processes_score_a_network_that_is_parted(tmp_path: Path) -> None:
    check_parted(tmp_path, 2)


@pytest.mark.slow
def test_four_processes_score_a_network_that_is_parted(tmp_path: Path) -> None:
    check_parted(tmp_path, 4)


def test_one_process_has_nobody_to_part_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", MLP, "--shard"]) == 2
    assert "parts a network among processes, and there is one. Start several" in capsys.readouterr().err


@pytest.mark.parametrize(("full", "rest", "count"), ((5, 1, 2), (1, 0, 4), (0, 1, 3), (4, 0, 4), (7, 1, 3)))
def test_all_processes_run_the_same_sizes(full: int, rest: int, count: int) -> None:
    orders = [in_step(full, bool(rest), rank, count) for rank in range(count)]
    assert len({tuple(batch == full for batch, _ in order) for order in orders}) == 1
    counted = [number for order in orders for batch, number in order if number is not None]
    assert sorted(counted) == list(range(full + rest))
    assert all(number in (None, batch) for order in orders for batch, number in order)
