"""Every hostile file ends each command that reads it with its exit code and two lines; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunecli.cli.main import run
from tests.hostile.corpus import CASES, Case
from tests.hostile.seeds import plant

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def found_in(folder: Path) -> dict[Path, bytes]:
    """Return every file, but those that importing Python leaves."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path: path.read_bytes() for path in files}


def put(case: Case, folder: Path) -> Path:
    """Write the hostile file, or the folder of them."""
    content, path = case.make(), folder / f"hostile{case.suffix}"
    for name, data in content.items() if not isinstance(content, bytes) else [("", content)]:
        target = path / name if name else path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with the tiny network."""
    plant(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    path = put(case, here)
    (here / "labels").write_bytes(b"\0\0\x08\x01\0\0\0\1\0")
    before = found_in(here)
    for command in case.commands:
        capsys.readouterr()
        code = run([part.replace("FILE", path.name) for part in command])
        out, err = capsys.readouterr()
        assert code == case.code, err
        assert not (out and code)
        errors = err[err.index("error: ") :].strip() if code else ""
        assert re.search(case.words, errors), errors
        assert len(errors.splitlines()) <= 2
        assert len(errors) <= 2100
        assert not _CONTROLS.search(out + err)
        assert found_in(here) == before
