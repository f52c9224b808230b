"""Pipes and devices in the place of files: refused at once, never waited for, never read to an end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunecli.cli.main import run
from prunecli.errors import OutputError
from prunecli.export.files import write_file
from prunecli.whole_file import read_whole
from tests.hostile.forged import pictures

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")

PRUNE = ("prune", "net.pt", "--spec", "net.toml", "--out", "new")
REPORT = ("compress-report", "net.pruned.json", "--out", "new.md")
COMMANDS = (
    ("inspect", "FILE"),
    ("init", "FILE"),
    ("compress-report", "net.pt", "FILE", "--spec", "net.toml", "--out", "new.md"),
    ("compress-report", "FILE", "--out", "new.md"),
    (*REPORT, "--baseline", "FILE", "--fail-if", "macs_ratio>1"),
    (*REPORT, "--sweep", "FILE"),
    (*PRUNE, "--apply", "FILE"),
    (*PRUNE, "--keep", "0.5", "--scores", "FILE"),
    (*PRUNE, "--keep", "0.5", "--data", "npz:FILE"),
    (*PRUNE, "--keep", "0.5", "--data", "idx:FILE"),
    ("finetune", "net.pt", "--spec", "net.toml", "--epochs", "1", "--distill", "FILE", "--out", "new"),
    ("inspect", "net.pt", "--spec", "FILE.toml"),
    ("inspect", "net.pt", "--spec", "hf:folder"),
    ("inspect", "index.json", "--spec", "net.toml"),
)


@pytest.fixture
def here(tmp_path: Path, seeds: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work beside the tiny network; what waits for ever is ended."""
    for name in ("net.pt", "net.py", "net.toml", "data.npz", "net.pruned.json"):
        (tmp_path / name).write_bytes((seeds / name).read_bytes())
    (tmp_path / "index.json").write_text('{"weight_map": {"a": "pipe"}}')
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "pipe.toml", "folder/config.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "zeros.toml").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, _complain)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _complain(*_: object) -> None:
    pytest.fail("it waits for a pipe")


@pytest.mark.parametrize("name", ("pipe", "zeros"))
@pytest.mark.parametrize("command", COMMANDS)
def test_pipes_and_devices_are_refused(
    name: str, command: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([part.replace("FILE", name) for part in command]) == 4
    err = capsys.readouterr().err
    assert "error: " in err
    assert not list(here.glob("new*"))


def test_a_pipe_among_pictures_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in pictures(b"").items():
        (here / "net" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "net" / name).write_bytes(content)
    (here / "net" / "pictures" / "x" / "a.png").unlink()
    os.mkfifo(here / "net" / "pictures" / "x" / "a.png")
    words = ("prune", "--at-init", "--spec", "net/net.toml", "--granularity", "weight", "--method", "snip")
    assert run([*words, "--keep", "0.9", "--data", "imagefolder:net/pictures", "--out", "new"]) == 4
    assert "a.png` cannot be read: it is no regular file. Take it out." in capsys.readouterr().err


def test_a_report_beside_a_model_that_is_a_pipe_is_left_alone(seeds: Path, here: Path) -> None:
    (here / "a.safetensors").write_bytes((seeds / "net.pruned.safetensors").read_bytes())
    os.mkfifo(here / "a.json")
    words = ("compress-report", "net.pt", "a.safetensors", "--spec", "net.toml", "--out", "new.md")
    assert run([*words]) == 0


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)  # which takes no room
    with pytest.raises(OSError, match="larger than 268,435,456 bytes"):
        read_whole(tmp_path / "a")
    with pytest.raises(OSError, match=r"larger than (the memory|10 bytes)"):
        read_whole(tmp_path / "a", 10)
    with pytest.raises(IsADirectoryError):
        read_whole(tmp_path)


def test_what_no_path_is_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="It is no path"):
        read_whole(tmp_path / "a\0b")
    with pytest.raises(OutputError, match="cannot be written: embedded null byte"):
        write_file(tmp_path / "a\0b", b"")
