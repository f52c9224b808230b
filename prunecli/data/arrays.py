"""Arrays on disk, `npz:` and `idx:` -> how many samples there are, and how to fetch some."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunecli.data.mapped import Mapped, member_of
from prunecli.data.samples import Fetch
from prunecli.errors import DataError
from prunecli.spec import ModelSpec
from prunecli.spec.code import first_line

Array = NDArray[Any]

_NAMES_OF_PARTS = "A part is named as in `npz:FILE#train`, for `train_images` and `train_labels`."
_NAMES_OF_INPUTS = (
    "Arrays have the names of the inputs; say which there are, e.g. `--input input_ids=16:int64`."
)

_MOST_INFLATION = 100
"""How many times larger than its file an array may be that fills memory; pictures shrink to a tenth."""
_SMALL = 2**30
"""Arrays of so many bytes may come of the smallest file."""
_MOST_DIMENSIONS = 32

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def open_npz(place: str, spec: ModelSpec) -> tuple[int, Fetch]:
    """Open the arrays `images` and `labels` of a file, or `PART_images` and `PART_labels` for `FILE#PART`.

    Where the file has no `images` and the spec names its inputs, these are arrays of the same names. A file
    without the labels has samples without targets.
    """
    name, _, part = place.partition("#")
    path = spec.resolve(name)
    prefix = f"{part}_" if part else ""
    wanted, targets = f"{prefix}images", f"{prefix}labels"
    names = [item.name for item in spec.inputs if item.name is not None]
    _check_file(path, f"npz:{place}")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"`{path}` holds one bare array. Save `images` and `labels` with `np.savez`.")
            with zipfile.ZipFile(path) as members:
                _check_inflation(path, sum(item.file_size for item in members.infolist()))
            by_name = bool(names) and wanted not in archive.files
            missing = [
                f"{prefix}{each}"
                for each in (names if by_name else ["images"])
                if f"{prefix}{each}" not in archive.files
            ]
            if missing:
                raise DataError(
                    f"`npz:{place}`: `{path.name}` has no array `{missing[0]}`, only "
                    f"{', '.join(sorted(archive.files))}. "
                    f"{_NAMES_OF_INPUTS if by_name else _NAMES_OF_PARTS}"
                )
            inputs = {
                each: _array(path, archive, f"{prefix}{each}") for each in (names if by_name else ["images"])
            }
            labels = _array(path, archive, targets) if targets in archive.files else None
    except DataError:
        raise
    except Exception as error:  # a damaged archive may raise anything: of zip, of zlib, of the headers in it
        raise DataError(f"`npz:{place}` cannot be read: {first_line(error)}.") from error
    if by_name:
        return _fetch_by_name(inputs, labels, f"npz:{place}")
    return _fetch_from(inputs["images"], labels, f"npz:{place}")


def _array(path: Path, archive: Any, name: str) -> Array | Mapped:
    """Return an array of an npz file: mapped, where it is large and not compressed."""
    mapped = member_of(path, name)
    return archive[name] if mapped is None else mapped


def open_idx(place: str, spec: ModelSpec) -> tuple[int, Fetch]:
    """Open a pair of idx files, as MNIST comes in, gzipped or not; or one, of samples without targets."""
    names = place.split(",")
    if len(names) > 2:
        raise DataError(f"`idx:{place}` names more than two files: `idx:IMAGES,LABELS`.")
    images, *labels = (read_idx(spec.resolve(name.strip())) for name in names)
    return _fetch_from(images, labels[0] if labels else None, f"idx:{place}")


def read_idx(path: Path) -> Array:
    """Read one idx file.

    Raises:
        DataError: it is missing, no idx file, or shorter or longer than it says.
    """
    _check_file(path, str(path))
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES:
                raise DataError(f"`{path}` is no idx file (it begins with {magic.hex(' ')}).")
            shape = [int.from_bytes(file.read(4), "big") for _ in range(magic[3])]
            dtype = np.dtype(_IDX_DTYPES[magic[2]])
            if len(shape) > _MOST_DIMENSIONS or 0 in shape:
                raise DataError(f"`{path}` claims the shape {shape}, which no samples have.")
            size = math.prod(shape) * dtype.itemsize
            _check_inflation(path, size)
            raw = file.read(size + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"`{path}` cannot be read: {error}.") from error
    if len(raw) != size:
        raise DataError(
            f"`{path}` should hold {size:,} bytes of shape {shape}, but holds "
            f"{'more' if len(raw) > size else f'{len(raw):,}'}."
        )
    return np.frombuffer(raw, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _check_file(path: Path, source: str) -> None:
    """Refuse what is no file, which might never end."""
    if not path.exists():
        raise DataError(f"`{source}`: there is no file `{path}`.")
    if not path.is_file():
        raise DataError(f"`{source}` cannot be read: `{path}` is no file.")


def _check_inflation(path: Path, claimed: int) -> None:
    """Refuse arrays that a file of this size cannot hold, before any is made."""
    size = path.stat().st_size
    if claimed > max(_MOST_INFLATION * size, _SMALL):
        raise DataError(
            f"`{path}` would unpack from {size:,} to {claimed:,} bytes, which no data do: a zip bomb? It was "
            "not opened."
        )


def _fetch_from(images: Array | Mapped, labels: Array | Mapped | None, source: str) -> tuple[int, Fetch]:
    """Serve two arrays side by side, or inputs alone."""
    count, fetch_by_name = _fetch_by_name({"images": images}, labels, source)

    def fetch(indices: Sequence[int]) -> tuple[Any, Any]:
        inputs, targets = fetch_by_name(indices)
        return inputs["images"], targets

    return count, fetch


def _fetch_by_name(
    inputs: Mapping[str, Array | Mapped], labels: Array | Mapped | None, source: str
) -> tuple[int, Fetch]:
    """Serve arrays side by side, each under its name."""
    given = dict(inputs) if labels is None else {**inputs, "labels": labels}
    arrays = {name: each.array if isinstance(each, Mapped) else each for name, each in given.items()}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member of the archive that is no array
            raise DataError(f"`{source}`: {name} is no array of numbers.")
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise DataError(
                f"`{source}`: {name} is an array of {array.dtype} with shape {array.shape}, not of numbers."
            )
    first, *others = arrays
    for name in others:
        if len(arrays[name]) != len(arrays[first]):
            raise DataError(f"`{source}` has {len(arrays[first])} {first}, but {len(arrays[name])} {name}.")

    def fetch(indices: Sequence[int]) -> tuple[Any, Any]:
        chosen = list(indices)
        found = {
            name: _tensor(each.rows(chosen) if isinstance(each, Mapped) else each[chosen])
            for name, each in given.items()
        }
        return {name: found[name] for name in inputs}, None if labels is None else found["labels"]

    return len(arrays[first]), fetch


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch has few operations on these
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
