"""Safetensors: the header is believed only where the file bears it out, and shards stay in their folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prunecli.checkpoint import Format, read_checkpoint
from prunecli.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_and_metadata_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.pt", {"prunecli": "{}"})
    found = read_checkpoint(tmp_path / "a.pt")
    assert (found.format, found.kind, found.wrapper) == (Format.SAFETENSORS, "safetensors", None)
    assert found.metadata == {"prunecli": "{}"}
    assert all(torch.equal(found.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert found.tensors["a.bias"].dtype is torch.bfloat16


def test_other_formats_have_no_metadata(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").metadata == {}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    (
        (b"{" + b" " * 20, b"", "its header is not JSON"),
        (b'{"a": 1, "a": 2}', b"", "`a` comes twice"),
        (b"{" + b'"a":{' * 50_000, b"", "its header is not JSON|malformed"),
        ({"__metadata__": 3}, b"", "metadata is not a table of texts"),
        ({"__metadata__": {"a": 3}}, b"", "metadata is not a table of texts"),
        ({"a": 3}, b"", "entry of `a` is malformed"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "entry of `a` is malformed"),
        ({"a": entry(0, 4, [1], "F4")}, b"1234", "has dtype `F4`"),
        ({"a": entry(0, 4, [-1])}, b"1234", r"shape of `a` is \[-1\]"),
        ({"a": entry(0, 4, [True])}, b"1234", "shape of `a` is"),
        ({"a": entry(0, 4, [10**12])}, b"1234", "cannot fill bytes 0 to 4"),
        ({"a": entry(4, 0, [1])}, b"1234", "cannot fill"),
        ({"a": entry(-4, 0, [1])}, b"1234", "cannot fill"),
        (
            {"a": entry(0, 4, [1]), "b": entry(0, 4, [1])},
            b"1234",
            "begins at byte 0, but the one before ends at 4",
        ),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"1" * 12, "begins at byte 8"),
        ({"a": entry(0, 8, [2])}, b"1234", "take 8 bytes, but 4 follow"),
        ({"a": entry(0, 4, [1])}, b"12345678", "take 4 bytes, but 8 follow"),
        ({"\x1b[31m": 3}, b"", r"`\\x1b\[31m` is malformed"),
    ),
)
def test_a_header_that_cannot_be_true_is_refused(
    tmp_path: Path, header: Any, data: bytes, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write(tmp_path / "a.safetensors", header, data))


def test_a_header_longer_than_the_file_is_not_allocated(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="claims 4,000,000,000 bytes, but the file has 12"):
        read_checkpoint(write(tmp_path / "a.safetensors", b"{}  ", length=4_000_000_000))


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged.*downloaded to the end"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_an_empty_file_of_tensors_holds_no_parameters(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="holds no parameters"):
        read_checkpoint(tmp_path / "a.safetensors")


def shards(folder: Path, weight_map: Any) -> Path:
    save_file({"a.weight": WEIGHTS["a.weight"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"a.bias": WEIGHTS["a.bias"]}, folder / "model-00002-of-00002.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def test_shards_are_read_together(tmp_path: Path) -> None:
    path = shards(
        tmp_path,
        {"a.weight": "model-00001-of-00002.safetensors", "a.bias": "model-00002-of-00002.safetensors"},
    )
    found = read_checkpoint(path)
    assert found.format is Format.SAFETENSORS_INDEX
    assert all(torch.equal(found.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    digest = found.digest
    save_file({"a.bias": WEIGHTS["a.bias"] + 1}, tmp_path / "model-00002-of-00002.safetensors")
    assert read_checkpoint(path).digest != digest


@pytest.mark.parametrize(
    ("weight_map", "message"),
    (
        ({"a.weight": "../model.safetensors"}, "not a plain file name. It was not opened"),
        ({"a.weight": "/etc/passwd"}, "not a plain file name"),
        ({"a.weight": "..\\x"}, "not a plain file name"),
        ({"a.weight": ".."}, "not a plain file name"),
        ({"a.weight": 3}, "not a plain file name"),
        ({"a.weight": "absent.safetensors"}, "lists the shard `absent.safetensors`, which is not beside it"),
        ({"zzz": "model-00001-of-00002.safetensors"}, "says that `zzz` is in .* but it is not there"),
        ({}, "not a table with entries"),
        ([1], "not a table with entries"),
    ),
)
def test_a_wrong_index_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(shards(tmp_path, weight_map))


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"weight_map": {')
    with pytest.raises(CheckpointError, match="is no index of shards"):
        read_checkpoint(tmp_path / "a.json")
