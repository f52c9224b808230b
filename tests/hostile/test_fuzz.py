"""Whatever a file holds, its reader returns a value or raises an error of two lines at most."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from prunecli.errors import PruneError
from tests.hostile.mutations import CHANGES, Change, damaged
from tests.hostile.readers import READERS, Reader

CASES = 2_000 // len(READERS) + 1
"""Of each reader in the normal run."""
MANY = 100_000 // len(READERS) + 1
"""Of each reader at night."""


def survives(reader: Reader, folder: Path, changes: Sequence[Change]) -> None:
    """Damage a seed, read it, and make sure of what may come of it."""
    path = folder / reader.name
    path.write_bytes(damaged((folder / "seeds" / reader.seed).read_bytes(), changes))
    before = {each for each in folder.rglob("*") if "__pycache__" not in each.parts}
    error = refusal(reader, path)
    assert error is None or error.exit_code in (2, 4, 5)
    assert error is None or 1 <= len(str(error).strip().splitlines()) <= 2
    assert {each for each in folder.rglob("*") if "__pycache__" not in each.parts} <= before


def refusal(reader: Reader, path: Path) -> PruneError | None:
    """Return what a reader says against a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and PyTorch, about numbers that nobody would train
            reader.read(path)
    except PruneError as error:
        return error
    return None


def fuzz(reader: Reader, folder: Path, count: int) -> None:
    """Try a reader with as many damaged files."""
    check = settings(
        max_examples=count,
        database=None,
        derandomize="PRUNECLI_FUZZ_SEED" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )(given(CHANGES)(lambda changes: survives(reader, folder, changes)))
    check()


@pytest.fixture
def folder(tmp_path: Path, seeds: Path) -> Path:
    """Return a folder with the seeds beside each other, and a copy of them that stays whole."""
    shutil.copytree(seeds, tmp_path, dirs_exist_ok=True)
    shutil.copytree(seeds, tmp_path / "seeds")
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_read(name: str, folder: Path) -> None:
    reader = READERS[name]
    (folder / reader.name).write_bytes((folder / reader.seed).read_bytes())
    assert reader.read(folder / reader.name) is not None


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_or_read(name: str, folder: Path) -> None:
    fuzz(READERS[name], folder, CASES)


@pytest.mark.nightly
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_or_read_all_night(name: str, folder: Path) -> None:
    fuzz(READERS[name], folder, MANY)
