"""Runs and sweeps whose files were damaged or exchanged before they are taken up again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunecli.cli.main import run

TRAIN = ("finetune", "net.pt", "--spec", "net.toml", "--lr", "0.1", "--no-onnx", "--take", "best", "-q")
SWEEP = ("sweep", "net.pt", "--spec", "net.toml", "--method", "random", "--keep", "0.5", "--out", "swept")


@pytest.fixture(scope="module")
def started(seeds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of two epochs, and a sweep."""
    folder = tmp_path_factory.mktemp("started")
    for name in ("net.pt", "net.py", "net.toml", "data.npz"):
        shutil.copy(seeds / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run([*TRAIN, "--epochs", "2", "--out", "tuned"]) == 0
        assert run([*SWEEP, "-q"]) == 0
    (folder / "tuned" / "net.finetuned.safetensors").unlink()
    (folder / "tuned" / "net.finetuned.json").unlink()
    return folder


@pytest.fixture
def here(started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a copy of it."""
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tuned" / "net.finetuned.run"


def taken_up(epochs: int = 2) -> int:
    return run([*TRAIN, "--epochs", str(epochs), "--out", "tuned", "--resume"])


def with_first_epoch_best(folder: Path) -> None:
    """Let the state say that the best epoch was the first, so that its file is needed."""
    path = folder / "state.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name, text = next(iter(metadata.items()))
    assert '"best_epoch": ' in text
    for epoch in (1, 2):
        text = text.replace(f'"best_epoch": {epoch}', '"best_epoch": 1')
    save_file(load_file(path), path, {name: text})


def test_a_run_that_ended_is_taken_up(here: Path) -> None:
    with_first_epoch_best(here)
    assert taken_up() == 0


@pytest.mark.parametrize("content", (b"", b"no tensors", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"))
def test_a_damaged_best_model_is_told(content: bytes, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_first_epoch_best(here)
    (here / "best.safetensors").write_bytes(content)
    assert taken_up() == 4
    reason = "`0.weight` is not there, but the" if content[8:] == b"{}" else "is a damaged safetensors file"
    assert reason in capsys.readouterr().err


def test_a_best_model_that_is_gone_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_first_epoch_best(here)
    (here / "best.safetensors").unlink()
    assert taken_up() == 4
    err = capsys.readouterr().err
    assert "best.safetensors` cannot be read: no such file or directory. Go on with `--resume --take" in err
    assert run([*TRAIN, "--epochs", "2", "--out", "tuned", "--resume", "--take", "last"]) == 0


def test_a_best_model_of_another_network_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_first_epoch_best(here)
    path = here / "best.safetensors"
    save_file({**load_file(path), "0.weight": torch.zeros(5, 4)}, path)
    assert taken_up() == 4
    assert "`0.weight` has shape [5, 4], but the model's has [6, 4]" in capsys.readouterr().err


@pytest.mark.parametrize("content", (b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 1000))
def test_a_damaged_state_is_told(content: bytes, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "state.safetensors").write_bytes(content)
    assert taken_up() == 4
    assert "state.safetensors` holds no run. Start over with `--force`" in capsys.readouterr().err


def test_a_state_that_cannot_be_read_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunecli.pipeline.keeping.read_whole", denied)
        assert taken_up() == 4
    assert "state.safetensors` cannot be read: permission denied. Start over" in capsys.readouterr().err


def denied(path: Path, most: int | None = None) -> bytes:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_other_files_of_a_run_are_written_anew(here: Path) -> None:
    for name in ("last.safetensors", "history.jsonl"):
        (here / name).write_bytes(b"\xff")
    assert taken_up() == 0
    assert len((here / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("content", (b"", b"[]", b'{"version": 1}', b"{" * 10_000, b"\xff\xfe"))
def test_a_damaged_trial_is_run_again(content: bytes, here: Path) -> None:
    found = [path for path in Path("swept").rglob("*.json") if path.name != "net.sweep.json"]
    assert found
    whole = {path: path.read_bytes() for path in found}
    for path in found:
        path.write_bytes(content)
    assert run([*SWEEP, "--force", "-q"]) == 0
    assert {path: path.read_bytes() for path in found}.keys() == whole.keys()
    assert all(len(path.read_bytes()) > 100 for path in found)
