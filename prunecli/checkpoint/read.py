"""A path -> Checkpoint: the tensors of one model, and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_never

from prunecli.checkpoint.names import printable
from prunecli.checkpoint.safetensors_files import read_index, read_safetensors, read_sharded
from prunecli.checkpoint.sniff import HUGGING_FACE_FILES, MAX_INFLATION, Format, sniff
from prunecli.checkpoint.torch_files import read_torch
from prunecli.checkpoint.unwrap import find_state_dict
from prunecli.errors import CheckpointError

_SMALL_FILE = 1 << 26
"""A file of fewer bytes may hold as many values as one of so many."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The parameters and buffers of one model, on the CPU, as they are in the file."""

    tensors: dict[str, Tensor] = field(repr=False)
    format: Format
    wrapper: str | None
    """Under which key the tensors were (`state_dict`); None if at the top."""
    metadata: dict[str, str] = field(repr=False)
    """The texts in the header of a safetensors file; the key `prunecli` marks a pruned file."""
    path: Path
    digest: str
    """SHA-256 of the file; of a folder or of shards, of the names and digests of their files."""
    bytes: int
    others: tuple[str, ...] = ()
    """What else is in the file, by name: `epoch`, `optimizer`."""

    @property
    def kind(self) -> str:
        """Say in words what the file is."""
        return self.format.value


def read_checkpoint(
    path: str | Path, key: str | None = None, allow_pickle: bool = False, on_demand: bool = False
) -> Checkpoint:
    """Read a checkpoint of any format that is known, told by its content.

    Args:
        path: a file, the folder of a distributed checkpoint, or one that `save_pretrained` wrote.
        key: which entry holds the model, where there are several; `a.b` for nested ones.
        allow_pickle: if need be, run the code that the file names. Only for files you trust.
        on_demand: read each tensor when it is used, and let go of it after; for safetensors only.

    Raises:
        CheckpointError: it is damaged, unsafe, or holds no parameters that can be pruned.
    """
    path = Path(path)
    format = sniff(path)
    content, metadata = _read_on_demand(path, format) if on_demand else _read(path, format, allow_pickle)
    tensors, wrapper = find_state_dict(path, content, key)
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    files = sorted(_files(path, format))
    size = sum(file.stat().st_size for file in files)
    _check_size(path, tensors, size)
    return Checkpoint(
        tensors=tensors,
        format=format,
        wrapper=wrapper,
        metadata=metadata,
        path=path,
        digest=_digest(files),
        bytes=size,
        others=tuple(_others(content, wrapper, tensors)),
    )


def path_inside(folder: Path) -> Path:
    """Return which file of a Hugging Face folder has the tensors, or lists the shards that do."""
    return next(folder / name for name in HUGGING_FACE_FILES if (folder / name).is_file())


def _read(path: Path, format: Format, allow_pickle: bool) -> tuple[Any, dict[str, str]]:
    match format:
        case Format.TORCH | Format.TORCH_LEGACY | Format.PICKLE:
            return read_torch(path, format, allow_pickle=allow_pickle), {}
        case Format.SAFETENSORS:
            return read_safetensors(path)
        case Format.SAFETENSORS_INDEX:
            return read_sharded(path)
        case Format.DCP:
            from prunecli.checkpoint.dcp import read_dcp  # torch.distributed is slow to import

            return read_dcp(path), {}
        case Format.HUGGING_FACE:
            found = path_inside(path)
            is_whole = found.suffix == ".safetensors"
            return read_safetensors(found) if is_whole else read_sharded(found)
        case _:
            assert_never(format)


def _read_on_demand(path: Path, format: Format) -> tuple[dict[str, Tensor], dict[str, str]]:
    found = path_inside(path) if format is Format.HUGGING_FACE else path
    if sniff(found) is Format.SAFETENSORS:
        return read_safetensors(found, on_demand=True)
    if sniff(found) is Format.SAFETENSORS_INDEX:
        return read_sharded(found, on_demand=True)
    raise CheckpointError(
        f"`{path}`: `--streaming` reads safetensors, one file or shards with their index, and this is "
        f"a {format.value}. Write its state dict with `safetensors.torch.save_file`."
    )


def _others(content: Any, wrapper: str | None, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the names of top-level entries that the model's tensors are not in."""
    for name in content if isinstance(content, Mapping) else ():
        holds_them = f"{wrapper}.".startswith(f"{name}.") or str(name).startswith(f"{wrapper}.")
        if not (name in tensors if wrapper is None else holds_them):
            yield str(name)


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse tensors that are not plain numbers in memory."""
    if tensor.is_quantized or (tensor.dtype.itemsize == 1 and tensor.is_floating_point()):
        kind = "quantised"
    elif tensor.layout is not torch.strided:
        kind = "sparse"
    elif tensor.is_complex():
        kind = "complex"
    elif tensor.is_meta:
        kind = "without values (saved from the meta device)"
    else:
        return
    raise CheckpointError(
        f"`{path}`: `{printable(name)}` is {kind}, which cannot be pruned. Save the model with dense float "
        "parameters, before quantisation or conversion."
    )


def _check_size(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that repeat a few values endlessly: whatever is done with them would fill the memory."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > MAX_INFLATION * max(size, _SMALL_FILE):
        raise CheckpointError(
            f"`{path}` has {size:,} bytes, but its tensors would have {total:,}, which no checkpoint does: "
            "they repeat the same values. It was not opened."
        )


def _files(path: Path, format: Format) -> Iterator[Path]:
    if format is Format.DCP:
        yield from (entry for entry in path.iterdir() if entry.is_file())
        return
    if format is Format.HUGGING_FACE:
        inside = path_inside(path)
        yield from _files(inside, sniff(inside))
        return
    yield path
    if format is Format.SAFETENSORS_INDEX:
        yield from (path.parent / shard for shard in set(read_index(path).values()))


def _digest(files: list[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
        digests.append(digest.hexdigest())
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
