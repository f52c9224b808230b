"""Files that a process was giving their names when it was killed -> all of them have their names.

Before several files are renamed, a hidden note beside them says which ones are about to be. Who finds the
note of a process that is gone finishes what it began, unless somebody has touched the files since. A note
that came from elsewhere does nothing: it cannot know the numbers that this disk gives to files. Who can
write one here could rename the files as well, but in a folder where each may rename his own alone: there,
notes of other users are left.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from prunecli.export.alone import alone_in, claim, is_in_use, name_of_part
from prunecli.strict_json import JsonError, parse_json
from prunecli.whole_file import read_whole

_ENDING: Final = ".renames"
_NOTE: Final = re.compile(r"\..{1,40}\.[0-9a-f]{8}" + re.escape(_ENDING), re.DOTALL)
_MOST_BYTES: Final = 2**20


def announce(parts: Mapping[Path, Path], token: str, stack: ExitStack) -> list[Path]:
    """Note, in each folder where several files are about to get their names, which these are.

    Args:
        parts: Where each file will be -> where its content is now, in the same folder.
        token: Tells the notes of one process from those of others.
        stack: The notes are in use until it unwinds.

    Returns:
        The notes, to be removed once all files have their names, or those from before again.

    Raises:
        OSError: A note cannot be written.
    """
    notes = []
    for folder in sorted({target.parent for target in parts}):
        targets = [target for target in parts if target.parent == folder]
        if len(targets) < 2:
            continue
        text = json.dumps(
            [
                [_spelt(target), _spelt(parts[target]), _identity(parts[target]), _identity(target)]
                for target in targets
            ]
        )
        note = name_of_part(targets[0], token).with_suffix(_ENDING)
        notes.append(note)
        try:
            _write_note(note, text, stack)
        except BaseException:  # a disk that is full
            for each in notes:
                each.unlink(missing_ok=True)
            raise
    return notes


def _write_note(note: Path, text: str, stack: ExitStack) -> None:
    with os.fdopen(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        claim(file.fileno(), stack)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def finish_renames(folder: Path) -> None:
    """Do what processes that were killed had begun in a folder; whatever stands in the way is left alone."""
    with suppress(OSError):
        if any(_notes(folder)):
            with alone_in([folder]) as is_alone:
                if is_alone:
                    finish_renames_in(folder)


def finish_renames_in(folder: Path) -> None:
    """Do the same in a folder that is kept for this process already."""
    with suppress(OSError):
        for note in list(_notes(folder)):
            _finish(note)


def _notes(folder: Path) -> Iterator[Path]:
    return (each for each in folder.iterdir() if _NOTE.fullmatch(each.name) and _is_trusted(each))


def _is_trusted(note: Path) -> bool:
    """Say whether who wrote the note could have renamed the files without us."""
    return not note.parent.stat().st_mode & stat.S_ISVTX or note.lstat().st_uid == os.geteuid()


def _finish(note: Path) -> None:
    with suppress(OSError, JsonError, ValueError, TypeError):
        if is_in_use(note):
            return
        entries = parse_json(read_whole(note, _MOST_BYTES))
        left = [_left(note.parent, *entry) for entry in entries]
        if all(step is not None for step in left):
            for part, target in (step for step in left if step):
                part.replace(target)
    note.unlink(missing_ok=True)


def _left(folder: Path, name: str, part_name: str, new: Any, old: Any) -> tuple[Path, ...] | None:
    """Return what is left to be renamed, and to what; nothing if it is done, None if it was touched."""
    target, part = (folder / Path(os.fsdecode(bytes(each, "latin-1"))).name for each in (name, part_name))
    found = _identity(target)
    if found == new is not None:
        return ()
    return (part, target) if found == old and _identity(part) == new is not None else None


def _spelt(path: Path) -> str:
    """Return a name as a text of its bytes, which may be no Unicode."""
    return os.fsencode(path.name).decode("latin-1")


def _identity(path: Path) -> list[int] | None:
    """Return what tells a file from others that had or will have its name; None where there is none."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    return [about.st_ino, about.st_size, about.st_mtime_ns]
