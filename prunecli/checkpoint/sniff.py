"""A path -> the format of the checkpoint there, told by content. Other files are refused by name."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path

from prunecli.arguments import nearest_file
from prunecli.errors import CheckpointError

_HEAD_BYTES = 4096
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""How `torch.save` began before zip files: protocol 2, then the magic number as a long."""

HUGGING_FACE_FILES = ("model.safetensors", "model.safetensors.index.json")
"""Where a folder of Hugging Face has its tensors: in one file, or in shards that an index lists."""

_SAVE_AGAIN = "Save the parameters where the model was made: `torch.save(model.state_dict(), PATH)`."

MAX_INFLATION = 20
"""How many times larger than the file its contents may be. `torch.save` does not compress at all."""

_ENDINGS = (".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt")
"""How the names of checkpoints end, as a rule."""


class Format(str, Enum):
    """A format that can be read."""

    TORCH = "torch zip"
    TORCH_LEGACY = "torch legacy"
    PICKLE = "pickle"
    SAFETENSORS = "safetensors"
    SAFETENSORS_INDEX = "sharded safetensors"
    DCP = "distributed checkpoint"
    HUGGING_FACE = "Hugging Face folder"


_OTHERS = (
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"BZh", "a bzip2 archive", "Unpack it first."),
    (b"\xfd7zXZ\x00", "an xz archive", "Unpack it first."),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive", "Unpack it first."),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras weights?)", "Only PyTorch checkpoints can be pruned."),
    (b"GGUF", "a GGUF file", "Only PyTorch checkpoints can be pruned."),
    (b"\x93NUMPY", "a NumPy array", "Only PyTorch checkpoints can be pruned."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch it with `git lfs pull`."),
    (b"<!DOCTYPE", "a web page", "The download probably failed."),
    (b"<!doctype", "a web page", "The download probably failed."),
    (b"<html", "a web page", "The download probably failed."),
)


def sniff(path: Path) -> Format:
    """Tell the format of the checkpoint at `path`.

    Raises:
        CheckpointError: there is no such file, it is empty or damaged, or it is something else.
    """
    try:
        return _sniff(path)
    except OSError as error:  # permissions, a failing disk, a name that is too long
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"`{path}` cannot be read: {reason}.") from error


def _sniff(path: Path) -> Format:
    if path.is_dir():
        return _sniff_folder(path)
    if not path.exists():
        raise CheckpointError(f"There is no file `{path}`.{nearest_file(path)}")
    if not path.is_file():
        raise CheckpointError(f"`{path}` is neither a file nor a folder.")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise CheckpointError(f"`{path}` is empty. Was it copied or downloaded to the end?")
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(_LEGACY_MAGIC):
        return Format.TORCH_LEGACY
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return Format.SAFETENSORS
    if head.lstrip()[:1] == b"{":
        return _sniff_json(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return Format.PICKLE
    raise _refusal(path, head)


def _sniff_folder(path: Path) -> Format:
    if (path / ".metadata").is_file():
        return Format.DCP
    if (path / "config.json").is_file():
        return _sniff_hugging_face(path)
    files = (entry.name for entry in path.iterdir() if entry.suffix in _ENDINGS)
    inside = sorted(files, key=lambda name: (not name.endswith(".index.json"), name))  # not one shard of many
    advice = (
        f"Name a file inside, e.g. `{path / inside[0]}`." if inside else "Name the checkpoint file itself."
    )
    raise CheckpointError(
        f"`{path}` is a folder, and no distributed checkpoint (it has no `.metadata`). {advice}"
    )


def _sniff_hugging_face(path: Path) -> Format:
    """Tell what `save_pretrained` writes from a folder that has only a part of it."""
    if any((path / name).is_file() for name in HUGGING_FACE_FILES):
        return Format.HUGGING_FACE
    old = "pytorch_model.bin"
    advice = (
        f"Pass that file, with `--spec hf:{path}`."
        if (path / old).is_file()
        else f"Save it with `model.save_pretrained({str(path)!r})`."
    )
    raise CheckpointError(
        f"`{path}` has a `config.json`, but no `{HUGGING_FACE_FILES[0]}` and no `{HUGGING_FACE_FILES[1]}`"
        f"{f', only `{old}`' if (path / old).is_file() else ''}. {advice}"
    )


def _sniff_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"`{path}` is a damaged zip file ({error}). Was it copied or downloaded to the end?"
        ) from error
    names = {f"/{name}" for entry in entries for name in (entry.filename, entry.filename.partition("/")[2])}
    if any(name.startswith("/code/") for name in names) or "/constants.pkl" in names:
        raise CheckpointError(
            f"`{path}` is a TorchScript archive: its graph is fixed and cannot be pruned. {_SAVE_AGAIN}"
        )
    if "/archive_format" in names or any(name.startswith("/models/") for name in names):
        raise CheckpointError(
            f"`{path}` is an exported program (.pt2): its graph is fixed and cannot be pruned. {_SAVE_AGAIN}"
        )
    if "/data.pkl" not in names:
        is_npz = any(entry.filename.endswith(".npy") for entry in entries)
        found = "NumPy arrays (.npz)" if is_npz else "a zip file of something else"
        raise CheckpointError(f"`{path}` holds {found}, not a PyTorch checkpoint. {_SAVE_AGAIN}")
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > MAX_INFLATION * size:
        raise CheckpointError(
            f"`{path}` would unpack from {size:,} to {total:,} bytes, which no checkpoint does: a zip bomb? "
            "It was not opened."
        )
    return Format.TORCH


def _sniff_json(path: Path) -> Format:
    """Tell an index of shards from other JSON; `read_index` checks it."""
    if path.stat().st_size < 2**28 and b'"weight_map"' in path.read_bytes():
        return Format.SAFETENSORS_INDEX
    raise CheckpointError(
        f"`{path}` is a JSON file, and no index of safetensors shards (it has no `weight_map`)."
    )


def _refusal(path: Path, head: bytes) -> CheckpointError:
    for magic, name, advice in _OTHERS:
        if head.startswith(magic):
            return CheckpointError(f"`{path}` is {name}, not a PyTorch checkpoint. {advice}")
    if head[257:262] == b"ustar":
        return CheckpointError(
            f"`{path}` is a tar archive (PyTorch 0.1?). Save it again with a newer PyTorch."
        )
    if _looks_like_onnx(head):
        return CheckpointError(
            f"`{path}` looks like an ONNX file: its graph is fixed and cannot be pruned. {_SAVE_AGAIN}"
        )
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return CheckpointError(f"`{path}` is a text file, not a PyTorch checkpoint.")
    return CheckpointError(
        f"`{path}` is in no known format (it begins with {head[:8].hex(' ')}). {_SAVE_AGAIN}"
    )


def _looks_like_onnx(head: bytes) -> bool:
    """Look for field 1 of the protobuf (ir_version, a small integer), then a producer, graph or opset."""
    return len(head) > 2 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x3A, 0x42)
