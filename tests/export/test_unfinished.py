"""What a process had begun that was killed between two names of files."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from prunecli.errors import OutputError
from prunecli.export import unfinished
from prunecli.export.files import write_files
from prunecli.export.unfinished import announce, finish_renames

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has neither fork nor flock")

NAMES = ("net.safetensors", "net.onnx", "net.json")
OLD, NEW = ({name: f"{kind} {name}" for name in NAMES} for kind in ("old", "new"))


def killed_while_writing(folder: Path, at: int, force: bool) -> bool:
    """Write the new files in a child that dies before its operation `at`; return whether it did."""
    child = os.fork()
    if not child:
        count = 0

        def die(event: str, _: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in ("os.rename", "os.link", "os.remove"):
                return
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        try:
            write_files({folder / name: text.encode() for name, text in NEW.items()}, force)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("force", (False, True))
def test_a_set_of_files_is_whole_once_somebody_reads_it(force: bool, tmp_path: Path) -> None:
    before = OLD if force else {}
    mixed, at = 0, 1
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        for name, text in before.items():
            (folder / name).write_text(text)
        if not killed_while_writing(folder, at, force):
            break
        mixed += texts(folder) not in (before, NEW)
        finish_renames(folder)
        assert texts(folder) in (before, NEW)
        assert not list(folder.glob(".*.renames"))
        at += 1
    assert mixed > 1


def begun(folder: Path) -> Path:
    """Leave two files of three under their old names, and return the note."""
    for name, text in OLD.items():
        (folder / name).write_text(text)
    at = 1
    while texts(folder)["net.safetensors"] != NEW["net.safetensors"] and at < 9:
        assert killed_while_writing(folder, at, True)
        at += 1
    assert texts(folder)["net.json"] == OLD["net.json"]
    (note,) = folder.glob(".*.renames")
    return note


def test_files_that_were_touched_since_are_left_alone(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "net.json").write_text("by hand")
    finish_renames(tmp_path)
    assert texts(tmp_path) == {**OLD, "net.safetensors": NEW["net.safetensors"], "net.json": "by hand"}
    assert not list(tmp_path.glob(".*.renames"))


def test_who_writes_there_finishes_first(tmp_path: Path) -> None:
    begun(tmp_path)
    write_files({tmp_path / "other": b"1", tmp_path / "another": b"2"})
    assert texts(tmp_path) == {**NEW, "other": "1", "another": "2"}


def test_who_is_at_it_is_left_alone(tmp_path: Path) -> None:
    import fcntl

    note = begun(tmp_path)
    with note.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finish_renames(tmp_path)
        assert note.exists()
    finish_renames(tmp_path)
    assert texts(tmp_path) == NEW


@pytest.mark.parametrize(
    "text",
    (
        "",
        "[",
        "[[1]]",
        '[["../a", "b", [1, 2, 3], null]]',
        '[["a", "b", [1, 2, 3], null]]',
        '[["a", "b", null, null]]',
        '{"a": 1}',
        "[null]",
    ),
)
def test_notes_of_others_do_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("theirs")
    (tmp_path / ".x.0123abcd.renames").write_text(text)
    finish_renames(tmp_path)
    assert not list(tmp_path.glob(".*.renames"))
    assert texts(tmp_path) == {"b": "theirs"}
    assert not (tmp_path.parent / "a").exists()


def test_files_of_other_names_are_no_notes(tmp_path: Path) -> None:
    names = {".x.renames", ".my.renames", ".x.0123abcg.renames", "x.0123abcd.renames"}
    for name in names:
        (tmp_path / name).write_text("[]")
    finish_renames(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_pipe_in_place_of_a_note_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".x.0123abcd.renames")
    (tmp_path / ".y.0123abcd.renames").symlink_to(tmp_path / ".x.0123abcd.renames")
    finish_renames(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_in_place_of_a_part_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(part := tmp_path / ".net.json.0123abcd.part")
    os.utime(part, (0, 0))
    write_files({tmp_path / "net.json": b"1"})
    assert part.is_fifo()


@pytest.mark.parametrize(("user", "is_finished"), ((0, True), (1, False)))
def test_where_files_belong_to_their_owners_notes_of_others_are_left(
    user: int, is_finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = begun(tmp_path)
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: note.stat().st_uid + user)
    finish_renames(tmp_path)
    assert note.exists() is not is_finished
    assert (texts(tmp_path) == NEW) is is_finished


def test_names_that_are_no_unicode_are_finished_too(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9\n%d" % number) for number in range(2)]
    parts = {tmp_path / name: tmp_path / f".{name}.0123abcd.part" for name in names}
    for part in parts.values():
        part.write_text("new")
    with ExitStack() as stack:
        announce(parts, "89abcdef", stack)
    finish_renames(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_note_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        if [path for path in tmp_path.iterdir() if path.suffix == ".renames"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"no space left on device\. Nothing was written"):
        write_files({tmp_path / name: b"new" for name in NAMES})
    assert not list(tmp_path.iterdir())


def test_one_file_needs_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished.json, "dumps", lambda _: pytest.fail("a note was written"))
    write_files({tmp_path / "a": b"1"})
    assert json.loads((tmp_path / "a").read_text()) == 1
