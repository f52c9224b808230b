"""What the program tells nobody: no connection is opened, and files do not say who made them, or where."""

from __future__ import annotations

import getpass
import shutil
import socket
from pathlib import Path

import pytest

from prunecli.cli.main import run
from tests.hostile.conftest import observed
from tests.hostile.seeds import SECRETS


@pytest.fixture
def written(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with files of every command, made where no connection can be opened."""
    shutil.copytree(seeds, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with observed():
        words = [
            "compress-report",
            "net.pt",
            "net.pruned.safetensors",
            "net.pruned.onnx",
            "--spec",
            "net.toml",
        ]
        for form in ("html", "md", "csv", "json"):
            words += ["--out", f"all.{form}"]
        assert run([*words, "-q"]) == 0
        loader = ("export", "net.pruned.safetensors", "--loader", "load.py", "--spec", "net.toml", "-q")
        assert run([*loader]) == 0
        assert run(["init", "net.pt", "--out", "new.toml"]) == 0
    return tmp_path


def test_files_do_not_tell_where_and_by_whom_they_were_made(seeds: Path, written: Path) -> None:
    others = {"__pycache__", "dcp"}  # by Python, and by PyTorch, whose index names the user
    found = [path for path in written.rglob("*") if path.is_file() and not others & set(path.parts)]
    assert len(found) > 30
    places = [str(seeds), str(written), str(Path.home())]
    for text in (*SECRETS.values(), *places, getpass.getuser(), socket.gethostname()):
        telling = [path.name for path in found if text.encode() in path.read_bytes()]
        assert telling == [] or len(text) < 8, text
