from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from prunecli.errors import OutputError
from prunecli.export import files
from prunecli.export.files import check_free, write_file, write_files


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def fail_on_call(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Let the n-th call of a function of the module raise."""
    original, calls = getattr(files, name), []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args)

    monkeypatch.setattr(files, name, failing)


def test_a_set_of_files_is_written_with_its_folders(tmp_path: Path) -> None:
    write_files({tmp_path / "a/b/x.bin": b"x", tmp_path / "a/y.bin": b""})
    assert tree(tmp_path) == {"a/b/x.bin": b"x", "a/y.bin": b""}


def test_a_file_that_is_there_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_file(path, b"old")
    for attempt in (lambda: check_free([path]), lambda: write_file(path, b"new")):
        with pytest.raises(OutputError, match=r"x.bin` is there already. Use `--force`"):
            attempt()
    assert tree(tmp_path) == {"x.bin": b"old"}


def test_force_replaces_and_keeps_the_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_file(path, b"old")
    path.chmod(0o640)
    write_file(path, b"new", force=True)
    assert tree(tmp_path) == {"x.bin": b"new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_new_files(tmp_path: Path) -> None:
    write_file(tmp_path / "x.bin", b"")
    (tmp_path / "y.bin").touch()
    assert (tmp_path / "x.bin").stat().st_mode == (tmp_path / "y.bin").stat().st_mode


def test_a_file_that_appears_during_the_work_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = files._write

    def write_and_be_overtaken(part: Path, content: bytes, stack: ExitStack) -> None:
        original(part, content, stack)
        (tmp_path / "b.bin").write_bytes(b"somebody else's")

    monkeypatch.setattr(files, "_write", write_and_be_overtaken)
    with pytest.raises(OutputError, match="b.bin` is there already"):
        write_files({tmp_path / "a.bin": b"a", tmp_path / "b.bin": b"b"})
    assert tree(tmp_path) == {"b.bin": b"somebody else's"}


@pytest.mark.parametrize("error", (KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
@pytest.mark.parametrize("step", ("_write", "_rename_to_free"))
def test_nothing_is_left_when_the_second_file_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    fail_on_call(monkeypatch, step, 2, error)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_files({tmp_path / "new/a.bin": b"a", tmp_path / "new/b.bin": b"b"})
    if isinstance(error, OSError):
        assert (
            str(caught.value) == "The files cannot be written: no space left on device. Nothing was written."
        )
    assert list(tmp_path.iterdir()) == []


def test_replaced_files_come_back_when_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {tmp_path / name: name.encode() for name in ("a.bin", "b.bin")}
    write_files(contents)
    fail_on_call(monkeypatch, "_back_up", 2, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OutputError, match="input/output error"):
        write_files(dict.fromkeys(contents, b"new"), force=True)
    assert tree(tmp_path) == {"a.bin": b"a.bin", "b.bin": b"b.bin"}


def test_without_hard_links_it_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_file(tmp_path / "x.bin", b"old")
    write_file(tmp_path / "x.bin", b"new", force=True)
    assert tree(tmp_path) == {"x.bin": b"new"}


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x.bin").write_bytes(b"old")
    link = tmp_path / "link.bin"
    link.symlink_to("real/x.bin")
    with pytest.raises(OutputError, match="there already"):
        write_file(link, b"new")
    write_file(link, b"new", force=True)
    assert link.is_symlink()
    assert (tmp_path / "real/x.bin").read_bytes() == b"new"


def test_a_dangling_link_counts_as_taken(tmp_path: Path) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to("missing.bin")
    with pytest.raises(OutputError, match="there already"):
        check_free([link])
    write_file(link, b"new", force=True)
    assert (tmp_path / "missing.bin").read_bytes() == b"new"


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to("link.bin")
    with pytest.raises(OutputError, match="cannot be written"):
        check_free([link], force=True)


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "same").symlink_to("folder")
    with pytest.raises(OutputError, match="would be written twice"):
        check_free([tmp_path / "folder/x.bin", tmp_path / "same/x.bin"])


def test_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder, expected the name of a file"):
        check_free([tmp_path], force=True)
    with pytest.raises(OutputError, match="is not a regular file"):
        check_free([Path(os.devnull)], force=True)


def test_a_file_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(OutputError, match="x` is a file, expected a folder"):
        check_free([tmp_path / "x/y.bin"])


def test_a_folder_without_permission_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(OutputError, match="no permission to write in"):
        check_free([tmp_path / "new/x.bin"])
