"""What goes wrong around a command: signals, full disks, folders that change. It ends cleanly, or is done.

What comes of being killed at random points is measured by `benchmarks/faults.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.main import main, run
from prunecli.errors import OutputError
from prunecli.export import files
from prunecli.export.files import write_files

SAMPLES = Path(__file__).parents[1] / "sample_models"
QUICK = ["--threads", "1", "--device", "cpu", "-q"]
WRITTEN = ["model.pruned.json", "model.pruned.onnx", "model.pruned.safetensors"]


@pytest.fixture
def mlp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a sample model, which is the working directory, with an empty `out` in it."""
    folder = tmp_path / "digits_mlp"
    shutil.copytree(SAMPLES / "digits_mlp", folder)
    shutil.copy(SAMPLES / "digits.npz", tmp_path)
    (folder / "out").mkdir()
    monkeypatch.chdir(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def do_first(monkeypatch: pytest.MonkeyPatch, dotted: str, action: Callable[[], object]) -> None:
    """Let something happen whenever a function is about to run."""
    module, _, name = dotted.rpartition(".")
    owner: Any = import_module(module)
    original = getattr(owner, name)

    def acting(*args: Any, **kwargs: Any) -> Any:
        action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, acting)


def exit_code(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return what the program exits with."""
    monkeypatch.setattr(sys, "argv", ["prunecli", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


PRUNE = ["prune", "model.pt", "--keep", "0.5", "--out", "out", *QUICK]
STAGES = {
    "opening": "prunecli.pipeline.prune.open_asked",
    "scoring": "prunecli.pipeline.scoring.score",
    "proving": "prunecli.pipeline.finishing.prove",
    "exporting": "prunecli.pipeline.finishing.export_onnx",
    "writing": "prunecli.export.files._write",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_to_end_leaves_nothing_behind(
    stage: str, mlp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    do_first(monkeypatch, STAGES[stage], lambda: signal.raise_signal(signal.SIGTERM))
    assert exit_code([*PRUNE, "--no-onnx"] if stage != "exporting" else PRUNE, monkeypatch) == 143
    assert names(mlp / "out") == []
    assert capsys.readouterr().err.endswith("error: interrupted; nothing was left half written\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("name", "code"), (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)))
def test_each_signal_has_its_exit_code(
    name: str, code: int, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_first(monkeypatch, STAGES["opening"], lambda: signal.raise_signal(getattr(signal, name)))
    ours = {"SIGINT": signal.default_int_handler}.get(name, signal.SIG_DFL)
    before = signal.signal(getattr(signal, name), ours)  # a shell has those in the background ignore some
    try:
        assert exit_code(PRUNE, monkeypatch) == code
    finally:
        signal.signal(getattr(signal, name), before)
    assert names(mlp / "out") == []


def test_a_request_to_end_waits_until_all_files_have_their_names(
    mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_first(
        monkeypatch, "prunecli.export.files._rename_to_free", lambda: signal.raise_signal(signal.SIGTERM)
    )
    assert exit_code(PRUNE, monkeypatch) == 143
    assert names(mlp / "out") == WRITTEN


def test_a_run_that_is_asked_to_end_is_kept(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ["finetune", "model.pt", "--epochs", "2", "--batch-size", "256", "--no-onnx", "--out", "out"]
    do_first(monkeypatch, "prunecli.pipeline.keeping.to_lines", lambda: signal.raise_signal(signal.SIGTERM))
    assert exit_code([*train, *QUICK], monkeypatch) == 143
    assert names(mlp / "out") == ["model.finetuned.run"]
    assert "state.safetensors" in names(mlp / "out" / "model.finetuned.run")
    monkeypatch.undo()
    monkeypatch.chdir(mlp)
    assert run([*train, *QUICK, "--resume"]) == 0


def test_under_nohup_a_terminal_that_goes_changes_nothing(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        do_first(monkeypatch, STAGES["opening"], lambda: signal.raise_signal(signal.SIGHUP))
        assert exit_code([*PRUNE, "--no-onnx"], monkeypatch) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", ("prune", "export", "compress-report"))
def test_when_the_disk_is_full_nothing_is_left(
    command: str, mlp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "prune": [*PRUNE, "--no-onnx"],
        "export": ["export", "model.pt", "--safetensors", "out/a.safetensors", "-q"],
        "compress-report": ["compress-report", "model.pt", "model.pt", "--out", "out/a.html", *QUICK[:2]],
    }[command]
    with file_size_limit(4000):
        assert run(arguments) == 4
    assert names(mlp / "out") == []
    assert "cannot be written: file too large. Nothing was written." in capfd.readouterr().err


def test_a_full_disk_leaves_the_old_files(mlp: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in WRITTEN:
        (mlp / "out" / name).write_text("old")
    with file_size_limit(4000):
        assert run([*PRUNE, "--force"]) == 4
    assert {(mlp / "out" / name).read_text() for name in names(mlp / "out")} == {"old"}
    assert names(mlp / "out") == WRITTEN


def test_a_report_that_cannot_be_written_is_said_before_any_work(
    mlp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (mlp / "out" / "model.pruned.json").mkdir()
    monkeypatch.setattr("prunecli.pipeline.prune.open_asked", None)  # never called
    assert run([*PRUNE, "--force"]) == 4
    assert "model.pruned.json` is a folder, expected the name of a file" in capsys.readouterr().err
    assert run(["compress-report", "model.pt", "model.pt", "--out", "model.pt/report.html"]) == 4
    assert "model.pt` is a file, expected a folder" in capsys.readouterr().err


def test_a_folder_that_is_deleted_meanwhile_is_made_again(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do_first(monkeypatch, STAGES["proving"], lambda: shutil.rmtree(mlp / "out"))
    assert run(PRUNE) == 0
    assert names(mlp / "out") == WRITTEN


def test_a_folder_that_goes_while_files_are_written_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    do_first(monkeypatch, "prunecli.export.files._rename_in_turn", lambda: shutil.rmtree(folder))
    with pytest.raises(OutputError, match="cannot be written: no such file or directory. Nothing"):
        write_files({folder / "a.bin": b"a", folder / "b.bin": b"b"})
    assert not folder.exists()


def test_a_file_that_becomes_a_link_meanwhile_does_not_lead_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, outside = tmp_path / "net.bin", tmp_path / "outside.bin"
    for path in (target, outside):
        path.write_bytes(b"old")

    def swap() -> None:
        target.unlink()
        target.symlink_to(outside)

    do_first(monkeypatch, "prunecli.export.files._rename_in_turn", swap)
    write_files({target: b"new"}, force=True)
    assert outside.read_bytes() == b"old"
    assert not target.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("force", (False, True))
def test_content_is_on_the_disk_before_it_has_its_name(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    folder = tmp_path / "new"
    contents = {folder / "a.bin": b"a", folder / "b.bin": b"b"}

    def name_of(handle: int) -> str:
        status = os.fstat(handle)
        places = (tmp_path, folder, *folder.iterdir())
        found = next(path for path in places if os.path.samestat(status, path.stat()))
        return found.name if found.is_dir() else found.name[1:6]

    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(f"flush {name_of(handle)}"), flush(handle)))
    for kind in ("replace", "hardlink_to"):
        original = getattr(Path, kind)

        def renaming(self: Path, other: Path, kind: str = kind, original: Any = original) -> Any:
            steps.append(f"name {(other if kind == 'replace' else self).name}")
            return original(self, other)

        monkeypatch.setattr(Path, kind, renaming)
    write_files(contents, force)
    note = "flush a.bin"  # of what is about to be named, under the name of the first
    expected = ["flush a.bin", "flush b.bin", note, "name a.bin", "name b.bin", "flush new"]
    assert steps[:6] == expected
    assert steps[6:] == [f"flush {tmp_path.name}"]  # or the new folder would not last


def test_a_disk_that_fails_at_the_last_moment_brings_the_old_files_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    write_files(dict.fromkeys(paths, b"old"))
    calls: list[Path] = []

    def failing(target: Path, part: Path, backups: dict[Path, Path]) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        original(target, part, backups)

    original = files._back_up
    monkeypatch.setattr(files, "_back_up", failing)
    with pytest.raises(OutputError, match=r"b.bin` cannot be written: input/output error. Nothing"):
        write_files(dict.fromkeys(paths, b"new"), force=True)
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.slow
@pytest.mark.parametrize("name", ("KILL", "TERM"))
def test_killed_at_random_points_files_are_whole_or_absent(name: str, root: Path) -> None:
    words = ["--trials", "8", "--signal", name, "--commands", "prune", "export"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *words],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("corrupt    0") == 4
    assert name == "KILL" or done.stdout.count("left .part 0") == 4
