"""What a file is, told by its content; what is no checkpoint is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prunecli.checkpoint import sniff
from prunecli.errors import CheckpointError


def zipped(*names: str, size: int = 1) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"\0" * size)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=np.ones(2))
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (b"", "is empty"),
        (b"PK\x03\x04 cut", "damaged zip file.*to the end"),
        (
            zipped("net/code/__torch__.py", "net/data.pkl"),
            r"TorchScript archive.*cannot be pruned.*state_dict\(\)",
        ),
        (zipped("net/constants.pkl", "net/data.pkl"), "TorchScript archive"),
        (zipped("archive/archive_format", "archive/models/model.json"), "exported program"),
        (zipped("archive_format"), "exported program"),
        (zipped("word/document.xml"), "a zip file of something else"),
        (npz(), r"NumPy arrays \(.npz\)"),
        (zipped("a/data.pkl", "a/data/0", size=10**7), "a zip bomb"),
        (gzip.compress(b"x", mtime=0), "a gzip archive.*Unpack it first"),
        (tar(), "a tar archive"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "an HDF5 file"),
        (b"GGUF" + b"\0" * 20, "a GGUF file"),
        (b"\x93NUMPY\x01", "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page.*download probably failed"),
        (b"hello, world\n", "a text file"),
        (json.dumps({"a": 1}).encode(), "a JSON file, and no index"),
        (b"\x08\x07\x12\x07pytorch", "looks like an ONNX file"),
        (b"\x7fELF\x02\x01\x01\x00", "in no known format .it begins with 7f 45 4c 46"),
        (b"\x00", "in no known format"),
    ),
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        sniff(path)


def test_missing_files_folders_and_pipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        sniff(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="is a folder.*Name the checkpoint file itself"):
        sniff(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"Name a file inside, e.g. `.*model.safetensors`"):
        sniff(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        sniff(tmp_path / "pipe")


@pytest.mark.filterwarnings("ignore")
def test_real_torchscript_and_exported_programs_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2).eval()
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        sniff(tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), tmp_path / "program.pt2")
    with pytest.raises(CheckpointError, match="exported program"):
        sniff(tmp_path / "program.pt2")


def test_a_real_onnx_file_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), str(tmp_path / "a.onnx"))
    with pytest.raises(CheckpointError, match="looks like an ONNX file"):
        sniff(tmp_path / "a.onnx")


def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: file name too long"):
        sniff(tmp_path / ("x" * 300))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: permission denied"):
        sniff(tmp_path)


def test_of_a_folder_of_shards_the_index_is_named(tmp_path: Path) -> None:
    for name in ("a-1.safetensors", "a-2.safetensors", "a.safetensors.index.json"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="Name a file inside, e.g. `.*a.safetensors.index.json`"):
        sniff(tmp_path)


def test_a_file_is_suggested_whose_ending_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    with pytest.raises(CheckpointError, match="Did you mean `.*net.pt`"):
        sniff(tmp_path / "net")
