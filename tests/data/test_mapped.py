"""Large arrays are mapped, row by row; everything else is read as ever."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from prunecli.data import mapped, open_data
from prunecli.data.mapped import Mapped, member_of
from prunecli.errors import DataError
from tests.data.small_data import spec_of

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(20)


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "LARGE", 0)


@pytest.mark.parametrize("dtype", ("u1", "<i2", ">i4", "<f4", ">f8", "?"))
def test_rows_are_those_of_the_array(dtype: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", before=np.ones(7), images=IMAGES.astype(dtype), labels=LABELS)
    found = member_of(tmp_path / "a.npz", "images")
    assert isinstance(found, Mapped)
    assert (found.array.shape, found.array.dtype) == (IMAGES.shape, np.dtype(dtype))
    for _ in range(2):
        assert np.array_equal(found.rows([3, 0, 19]), IMAGES.astype(dtype)[[3, 0, 19]])


def test_what_does_not_lie_there_as_it_is_has_to_be_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "small.npz", images=IMAGES)
    np.savez(
        tmp_path / "other.npz", turned=np.asfortranarray(IMAGES), words=np.array(["a"]), scalar=np.array(1)
    )
    assert member_of(tmp_path / "small.npz", "images") is None
    assert [member_of(tmp_path / "other.npz", name) for name in ("turned", "words", "scalar")] == [None] * 3


def test_small_arrays_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    monkeypatch.setattr(mapped, "LARGE", 2**26)
    assert member_of(tmp_path / "a.npz", "images") is None


def test_samples_are_the_same_mapped_or_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    np.savez_compressed(tmp_path / "b.npz", images=IMAGES, labels=LABELS)
    for one, other in zip(
        *(
            open_data(f"npz:{name}[4:]", spec_of(3, 4, 4, base=tmp_path)).batch([0, 9, 2])
            for name in ("a.npz", "b.npz")
        ),
        strict=True,
    ):
        assert str(one) == str(other)


@pytest.mark.parametrize("change", (b"12", None), ids=("longer", "shorter"))
def test_arrays_that_do_not_fill_their_bytes_are_refused(change: bytes | None, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        content = io.BytesIO()
        np.save(content, IMAGES)
        raw = content.getvalue()
        archive.writestr("images.npy", raw + change if change else raw[:-1])
    with pytest.raises(
        DataError, match=r"images of shape \(20, 3, 4, 4\) and uint8 cannot fill 1,0\d\d bytes"
    ):
        open_data("npz:a.npz", spec_of(3, 4, 4, base=tmp_path))


def test_a_file_that_is_shortened_meanwhile_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    samples = open_data("npz:a.npz", spec_of(3, 4, 4, base=tmp_path))
    os.truncate(tmp_path / "a.npz", 100)
    with pytest.raises(DataError, match="failed at sample 3: OSError: the file was shortened while"):
        samples.batch([3])
