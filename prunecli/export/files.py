"""Contents -> files, whole or not at all, and never over a file that is there already.

Everything is written under temporary names in the folders of the targets first; only when all of it is
safely on disk do the names change. A failure on the way, Ctrl-C included, puts back what was there. While
names change, signals wait, and other processes that write into the same folders do too, so that the files
of two runs never mix. A process that is killed leaves hidden files ending in `.part`, which the next one
that writes the same files removes; killed between two names, also a note from which the next one that
reads or writes there gives the rest their names.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from prunecli.errors import OutputError
from prunecli.export.alone import alone_in, claim, name_of_part, remove_leftovers, undisturbed
from prunecli.export.streamed import Streamed
from prunecli.export.unfinished import announce, finish_renames_in

Content: TypeAlias = bytes | Streamed
"""What a file will hold: as a whole, or a part at a time."""


def check_free(paths: Iterable[Path], force: bool = False) -> None:
    """Check, before long work starts, that `write_files` will be able to write these paths.

    Raises:
        OutputError: when a path is taken (without `force`), named twice, no regular file, or lies in a
            folder that cannot be written.
    """
    seen: set[Path] = set()
    for path in paths:
        target = _target(path)
        if target in seen:
            raise OutputError(f"`{path}` would be written twice. Give the files different names.")
        seen.add(target)
        if not force and os.path.lexists(path):
            raise _taken(path)
        _check_folder(path, target)


def write_files(contents: Mapping[Path, Content], force: bool = False) -> None:
    """Write a set of files: all of them, or none. Missing folders are made; a link's target is written.

    Raises:
        OutputError: when a file cannot be written, or is there already and `force` is not given.
    """
    check_free(contents, force)
    parts: dict[Path, Path] = {}
    with _new_folders(contents) as folders, _reporting_trouble(), ExitStack() as stack:
        try:
            for path, content in contents.items():
                target = _target(path)
                parts[target] = _temporary_name(target)
                _write(parts[target], content, stack)
            with undisturbed():
                _rename_in_turn(parts, force)
                _flush(folders)
        finally:
            with undisturbed():
                for part in parts.values():
                    part.unlink(missing_ok=True)
        folders.clear()  # they hold files now


def write_file(path: Path, content: bytes, force: bool = False) -> None:
    """Write one file, whole or not at all. See `write_files`."""
    write_files({path: content}, force)


def _target(path: Path) -> Path:
    """Return the file that is really written: links are followed, so that they stay links."""
    try:
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else None
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself is the second before Python 3.13
        raise OutputError(f"`{path}` cannot be written: {_reason(error)}.") from None
    if path.is_symlink() and target.is_symlink():
        raise OutputError(f"`{path}` cannot be written: it is a link that leads to itself.")
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"`{path}` is a folder, expected the name of a file.")
    if mode is not None and not stat.S_ISREG(mode):
        raise OutputError(f"`{path}` is not a regular file. Name a file that can be replaced as a whole.")
    return target


def _check_folder(path: Path, target: Path) -> None:
    """Check that the folder can be written, or made in the nearest folder that exists."""
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(f"`{path}` cannot be written: `{folder}` is a file, expected a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"`{path}` cannot be written: no permission to write in `{folder}`.")


def _taken(path: Path) -> OutputError:
    return OutputError(f"`{path}` is there already. Use `--force` to replace it, or another `--out`.")


@contextmanager
def _new_folders(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Make the missing folders; those still listed at the end are taken away again."""
    made: list[Path] = []
    try:
        for path in paths:
            missing = [folder for folder in _target(path).parents if not folder.exists()]
            for folder in reversed(missing):
                made.append(folder)
                with _reporting_trouble():
                    folder.mkdir(exist_ok=True)
        yield made
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # somebody else put something in
                folder.rmdir()


def _temporary_name(target: Path) -> Path:
    return name_of_part(target, secrets.token_hex(4))


def _write(part: Path, content: Content, stack: ExitStack) -> None:
    """Write and flush to the disk, with the permissions a new file gets, and mark it as in use."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        claim(file.fileno(), stack)
        for chunk in (content,) if isinstance(content, bytes) else content:
            file.write(chunk)
            if not isinstance(content, bytes):
                digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    _check_unchanged(content, digest.hexdigest())


def _check_unchanged(content: Content, digest: str) -> None:
    """Refuse a file that was made of others than what was proven: somebody wrote to the checkpoint."""
    if isinstance(content, Streamed) and digest != content.sha256:
        raise OutputError(
            "The checkpoint changed while it was read. Nothing was written; leave it alone, and try again."
        )


def _rename_in_turn(parts: Mapping[Path, Path], force: bool) -> None:
    """Give the parts their names while no other process does so in these folders."""
    with alone_in(target.parent for target in parts) as is_alone, ExitStack() as stack:
        notes: list[Path] = []
        try:
            if is_alone:
                for folder in {target.parent for target in parts}:
                    finish_renames_in(folder)
                for target in parts:
                    remove_leftovers(target)
                notes += announce(parts, secrets.token_hex(4), stack)
            _rename_all(parts, force)
        finally:
            for note in notes:
                note.unlink(missing_ok=True)


def _rename_all(parts: Mapping[Path, Path], force: bool) -> None:
    """Give the parts their names. When one fails, the files that were replaced come back."""
    renamed: list[Path] = []
    backups: dict[Path, Path] = {}
    try:
        for target, part in parts.items():
            if force:
                _back_up(target, part, backups)
                part.replace(target)
            else:
                _rename_to_free(part, target)
            renamed.append(target)
    except BaseException:
        for target in renamed:
            if target in backups:
                backups[target].replace(target)
            else:
                target.unlink()
        raise
    finally:
        for backup in backups.values():
            backup.unlink(missing_ok=True)
    _flush(parts)


def _back_up(target: Path, part: Path, backups: dict[Path, Path]) -> None:
    """Keep the old file under a second name where the file system can; its permissions pass on."""
    if target.exists():
        shutil.copymode(target, part)
        backup = _temporary_name(target)
        with suppress(OSError):
            backup.hardlink_to(target)
            backups[target] = backup


def _rename_to_free(part: Path, target: Path) -> None:
    """Rename without ever replacing: a hard link fails when somebody was faster, a rename does not."""
    try:
        target.hardlink_to(part)
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise _taken(target) from None
        part.replace(target)


def _flush(paths: Iterable[Path]) -> None:
    """Make new names last through a power cut, where the system can."""
    for folder in {path.parent for path in paths}:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def _reporting_trouble() -> Iterator[None]:
    """Turn what the operating system says into one line."""
    try:
        yield
    except OSError as error:
        place = f"`{error.filename}`" if error.filename else "The files"
        raise OutputError(f"{place} cannot be written: {_reason(error)}. Nothing was written.") from None


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return (text or type(error).__name__).lower()
