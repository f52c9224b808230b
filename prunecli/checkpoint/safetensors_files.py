"""Safetensors files and indexes of shards -> tensors. Headers are checked before anything is allocated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunecli.checkpoint.names import printable
from prunecli.errors import CheckpointError
from prunecli.on_demand import mapped
from prunecli.strict_json import JsonError, parse_json

_MAX_HEADER_BYTES = 100_000_000
_MOST_DIMENSIONS = 64
"""PyTorch has no tensors of more."""
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""What networks that can be pruned are made of; the library writes tensors in this order, the last first."""


class Entry(NamedTuple):
    """Where the bytes of a tensor begin and end, counted from the end of the header, and what they are."""

    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What the JSON in front of the tensors says."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    end: int
    """Where the header ends, and the bytes of the tensors begin."""


def read_header(path: Path) -> Header:
    """Read and check the header; no tensor is touched.

    Raises:
        CheckpointError: a length, offset, shape or dtype cannot be true of this file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, f"its header claims {length:,} bytes, but the file has {size:,}")
        raw = file.read(length)
    try:
        table = parse_json(raw)
    except JsonError as error:
        raise _damaged(path, f"its header is not JSON: {printable(str(error))}") from None
    if not isinstance(table, dict):
        raise _damaged(path, "its header is not a table")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata is not a table of texts")
    entries = {name: _check_entry(path, name, entry) for name, entry in table.items()}
    _check_layout(path, entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


def read_safetensors(path: Path, on_demand: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of one file, mapped as a whole, or each when it is used; and its metadata."""
    header = read_header(path)
    if on_demand:
        return {name: _on_demand(path, name, header) for name in header.entries}, dict(header.metadata)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mapped tensor is read-only; it is copied before it is used
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in header.entries}, dict(header.metadata)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, printable(str(error))) from error


def _on_demand(path: Path, name: str, header: Header) -> Tensor:
    entry = header.entries[name]
    if entry.dtype not in DTYPES:
        raise CheckpointError(
            f"`{path}`: `{printable(name)}` has dtype `{entry.dtype}`, which cannot be pruned. "
            "Convert the checkpoint to float32, float16 or bfloat16."
        )
    return mapped(path, header.end + entry.begin, entry.shape, DTYPES[entry.dtype])


def read_sharded(path: Path, on_demand: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that an index file lists, from the shards beside it."""
    tensors: dict[str, Tensor] = {}
    weight_map = read_index(path)
    for shard in sorted(set(weight_map.values())):
        if not (path.parent / shard).is_file():
            raise CheckpointError(f"`{path}` lists the shard `{printable(shard)}`, which is not beside it.")
        found, _ = read_safetensors(path.parent / shard, on_demand)
        for name in (name for name, place in weight_map.items() if place == shard):
            if name not in found:
                raise CheckpointError(
                    f"`{path}` says that `{printable(name)}` is in `{printable(shard)}`, but it is not there."
                )
            tensors[name] = found[name]
    return tensors, {}


def read_index(path: Path) -> dict[str, str]:
    """Return which shard holds which tensor; a shard is a plain file name, never a path."""
    try:
        weight_map = parse_json(_content(path)).get("weight_map")
    except (JsonError, AttributeError) as error:
        raise CheckpointError(f"`{path}` is no index of shards: {printable(str(error))}.") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"`{path}` is no index of shards: its `weight_map` is not a table with entries."
        )
    for shard in weight_map.values():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & set("/\\:\0"):
            raise CheckpointError(
                f"`{path}` names the shard {printable(repr(shard))}, which is not a plain file name. It was "
                "not opened."
            )
    return weight_map


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"`{path}` has {size:,} bytes, which no index of shards has. It was not opened."
        )
    return path.read_bytes()


def _check_entry(path: Path, name: str, entry: Any) -> Entry:
    """Return what the header says of a tensor, if its bytes agree with its shape and dtype."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _damaged(path, f"the entry of `{printable(name)}` is malformed")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(
            f"`{path}`: `{printable(name)}` has dtype `{printable(dtype)}`, which cannot be pruned. "
            "Convert the checkpoint to float32, float16 or bfloat16."
        )
    if len(shape) > _MOST_DIMENSIONS or not all(
        type(length) is int and 0 <= length < 2**63 for length in shape
    ):
        raise _damaged(path, f"the shape of `{printable(name)}` is {printable(str(shape))}")
    strides = math.prod(max(length, 1) for length in shape)  # PyTorch counts them beside a length of 0 too
    if begin < 0 or end - begin != math.prod(shape) * _ITEM_BYTES[dtype] or strides >= 2**63:
        raise _damaged(
            path,
            f"`{printable(name)}` of shape {printable(shape)} and dtype {dtype} cannot fill bytes "
            f"{begin:,} to {end:,}",
        )
    return Entry(begin, end, dtype, tuple(shape))


def _check_layout(path: Path, entries: Mapping[str, Entry], data_bytes: int) -> None:
    """Refuse tensors that overlap, leave gaps or reach past the end."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][:2]):
        if entry.begin != position:
            raise _damaged(
                path,
                f"`{printable(name)}` begins at byte {entry.begin:,}, but the one before ends at "
                f"{position:,}",
            )
        position = entry.end
    if position != data_bytes:
        raise _damaged(path, f"its tensors take {position:,} bytes, but {data_bytes:,} follow the header")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"`{path}` is a damaged safetensors file: {reason}. Was it copied or downloaded to the end?"
    )
