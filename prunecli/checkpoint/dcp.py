"""A folder of `torch.distributed.checkpoint` -> nested dicts of tensors.

PyTorch's own converter unpickles the index and every value that is not a tensor without restriction, so only
its reader of tensors is used here, with an index that was checked first.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from enum import Enum, EnumMeta
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from prunecli.checkpoint.names import printable
from prunecli.checkpoint.stand_ins import path
from prunecli.checkpoint.torch_files import check_torch_version
from prunecli.errors import CheckpointError
from prunecli.whole_file import read_whole

_INDEX = ".metadata"
_INDEX_MODULES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "collections": {"OrderedDict"},
}
_PATHS = {"Path", "PosixPath", "PurePosixPath"}


def read_dcp(folder: Path) -> dict[str, Any]:
    """Return the tensors in the folder, nested as they were saved; values that are no tensors are left out.

    Raises:
        CheckpointError: the index is damaged or hostile, or a file that it names is missing.
    """
    check_torch_version()
    index = _read_index(folder)
    try:
        sizes = {
            name: entry
            for name, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        _check_index(folder, index, sizes)
        flat = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in sizes.items()}
        with catch_warnings():
            filterwarnings("ignore", "torch.distributed is disabled")  # which is meant so
            load(flat, storage_reader=_CheckedReader(folder, index), no_dist=True)
        return _nested(flat, index.planner_data or {})
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise CheckpointError(
            f"`{folder}` is damaged: {printable(reason)}. Was it copied to the end?"
        ) from error


class _CheckedReader(FileSystemReader):
    """PyTorch's reader, with an index that was read beforehand."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self.index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the checked index instead of unpickling it."""
        if getattr(self.index, "storage_meta", None) is None:
            self.index.storage_meta = StorageMeta()
        return self.index


class _IndexUnpickler(pickle.Unpickler):
    """Unpickles the classes an index is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, if it is one of an index; a path stays a text."""
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return path
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name in _INDEX_MODULES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would run code of `{printable(f'{module}.{name}')}`")


def _member(kind: Any, name: Any) -> Enum:
    """Return a member of an enumeration, which Python 3.11.0 to 3.11.3 pickle as `getattr(kind, name)`."""
    if isinstance(kind, EnumMeta) and isinstance(name, str) and name in kind.__members__:
        member: Enum = kind[name]
        return member
    raise pickle.UnpicklingError("it would run code of `builtins.getattr`")


def _read_index(folder: Path) -> Metadata:
    try:
        content = read_whole(folder / _INDEX)
        _check_memo(content)
        index = _IndexUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a hostile or damaged pickle may raise anything
        raise CheckpointError(f"`{folder / _INDEX}` cannot be read safely: {printable(error)}.") from error
    if not isinstance(index, Metadata):
        raise CheckpointError(f"`{folder / _INDEX}` is no index of a distributed checkpoint.")
    return index


def _check_memo(content: bytes) -> None:
    """Refuse places in the memo that a pickle of this size cannot need: it would be allocated up to there."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError("it is damaged")


def _check_index(folder: Path, index: Metadata, sizes: Mapping[str, TensorStorageMetadata]) -> None:
    """Refuse files outside the folder, and tensors that the files cannot hold, before memory is taken."""
    available = 0
    for name in {str(info.relative_path) for info in (index.storage_data or {}).values()}:
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise CheckpointError(
                f"`{folder / _INDEX}` names the file `{printable(name)}`, which is not a plain file name."
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"`{folder}` lacks the file `{printable(name)}` that its index names.")
        available += (folder / name).stat().st_size
    if any(min(entry.size, default=0) < 0 for entry in sizes.values()):
        raise CheckpointError(f"`{folder / _INDEX}` is damaged: a tensor has a negative size.")
    claimed = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in sizes.values())
    if claimed > available * 20:
        raise CheckpointError(
            f"`{folder / _INDEX}` claims {claimed:,} bytes, but its files hold {available:,}."
        )


def _nested(flat: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Undo the flattening that the saver did: "model.conv.weight" came from model -> "conv.weight"."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = paths.get(name, (name,))
        place = nested
        for parent in parents:
            place = place.setdefault(str(parent), {})
        place[str(last)] = value
    return nested
