"""Files of `torch.save`: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import argparse
import datetime
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunecli.checkpoint import Format, read_checkpoint
from prunecli.checkpoint.stand_ins import Array
from prunecli.checkpoint.torch_files import read_torch
from prunecli.errors import CheckpointError

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}
FORMATS = pytest.mark.parametrize("zipped", (True, False), ids=("zip", "legacy"))


class Payload:
    """Leaves a folder behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def save(content: Any, path: Path, zipped: bool = True, **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
    return path


@FORMATS
def test_a_state_dict_is_read(tmp_path: Path, zipped: bool) -> None:
    found = read_checkpoint(save(WEIGHTS, tmp_path / "a.pt", zipped))
    assert found.format is (Format.TORCH if zipped else Format.TORCH_LEGACY)
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert found.bytes == (tmp_path / "a.pt").stat().st_size
    assert len(found.digest) == 64


@FORMATS
def test_what_scripts_leave_beside_the_weights_is_read_as_plain_values(tmp_path: Path, zipped: bool) -> None:
    lists: Any = defaultdict(list)
    lists["a"].append(3)
    content = {
        "state_dict": OrderedDict(WEIGHTS),
        "args": argparse.Namespace(lr=0.1, out=Path("/a/b"), names=argparse.Namespace(x=1)),
        "best": np.float64(3.5),
        "count": np.int64(7),
        "ok": np.bool_(True),
        "history": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "objects": np.array(["a", None], dtype=object),
        "lists": lists,
        "nested": defaultdict(dict, a={"x": 3}),
        "when": datetime.datetime(2020, 1, 1),
        "dtype": np.dtype("float32"),
        "slice": slice(1, 2),
        "size": torch.Size([2]),
    }
    path = save(content, tmp_path / "a.pt", zipped)
    found = read_torch(path, Format.TORCH if zipped else Format.TORCH_LEGACY)
    assert (found["best"], found["count"], found["ok"]) == (3.5, 7, True)
    assert (found["args"].lr, found["args"].out, found["args"].names.x) == (0.1, "/a/b", 1)
    assert (found["lists"], found["nested"]) == ({"a": [3]}, {"a": {"x": 3}})
    assert found["history"].tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["big"].tensor.tolist() == [0, 1, 2]
    assert found["objects"].tensor is None
    assert found["slice"] == slice(1, 2)
    assert read_checkpoint(path).wrapper == "state_dict"


def test_a_state_of_numpy_arrays_becomes_tensors(tmp_path: Path) -> None:
    path = save({"model": {"fc.weight": np.ones((2, 3), np.float32)}}, tmp_path / "a.pt")
    assert read_checkpoint(path).tensors["fc.weight"].shape == (2, 3)


@pytest.mark.parametrize(
    "state", (None, (1, (2,), None, False, b"1234"), (1, (10**12,), 3, False, b""), (1,))
)
def test_a_hostile_array_is_no_tensor(state: object) -> None:
    array = Array()
    array.__setstate__(state)
    assert array.tensor is None


@FORMATS
def test_other_code_is_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    path = save({"state_dict": WEIGHTS, "x": Payload(tmp_path / "ran")}, tmp_path / "a.pt", zipped)
    with pytest.raises(CheckpointError, match=r"more than parameters: .*`posix.mkdir`.*--allow-pickle"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    assert read_checkpoint(path, allow_pickle=True).tensors.keys() == WEIGHTS.keys()
    assert (tmp_path / "ran").exists()


@FORMATS
def test_a_whole_model_is_refused_unless_allowed(tmp_path: Path, zipped: bool) -> None:
    path = save(nn.Sequential(nn.Linear(2, 3)), tmp_path / "a.pt", zipped)
    with pytest.raises(
        CheckpointError,
        match=r"a whole pickled model.*`torch.nn.modules.container.Sequential`.*state_dict\(\)",
    ):
        read_checkpoint(path)
    assert read_checkpoint(path, allow_pickle=True).tensors.keys() == {"0.weight", "0.bias"}


def test_a_model_in_a_wrapper_is_its_state(tmp_path: Path) -> None:
    path = save({"model": nn.Linear(2, 3), "epoch": 3}, tmp_path / "a.pt")
    found = read_checkpoint(path, allow_pickle=True)
    assert (found.wrapper, set(found.tensors)) == ("model", {"weight", "bias"})


@FORMATS
def test_code_that_is_gone_is_named(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = type(sys)("gone_module")
    monkeypatch.setitem(sys.modules, "gone_module", gone)
    gone.Net = type("Net", (), {"__module__": "gone_module"})  # type: ignore[attr-defined]
    path = save(gone.Net(), tmp_path / "a.pt", zipped)
    monkeypatch.delitem(sys.modules, "gone_module")
    with pytest.raises(CheckpointError, match=r"would run code of `gone_module.Net`"):
        read_checkpoint(path)
    with pytest.raises(
        CheckpointError, match=r"needs code that is not here: No module named 'gone_module'.*PYTHONPATH"
    ):
        read_checkpoint(path, allow_pickle=True)


def test_plain_pickles_are_refused_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"state_dict": WEIGHTS}))
    with pytest.raises(CheckpointError, match=r"plain pickle, not written by `torch.save`.*--allow-pickle"):
        read_checkpoint(path)
    assert read_checkpoint(path, allow_pickle=True).tensors.keys() == WEIGHTS.keys()


@FORMATS
@pytest.mark.parametrize("keep", (0.3, 0.9))
def test_a_cut_file_is_damaged(tmp_path: Path, zipped: bool, keep: float) -> None:
    path = save({"w": torch.rand(99)}, tmp_path / "a.pt", zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="damaged.*downloaded to the end"):
        read_checkpoint(path)


def test_a_newer_protocol_is_explained(tmp_path: Path) -> None:
    path = save({"state_dict": WEIGHTS}, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(
        CheckpointError, match=r"pickle protocol that cannot be read safely.*pickle_protocol=2"
    ):
        read_checkpoint(path)


def test_no_old_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(WEIGHTS, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(
        CheckpointError, match=r"2.9.1 cannot read untrusted checkpoints safely. Install 2.10"
    ):
        read_checkpoint(path)


def test_a_compressed_zip_is_read(tmp_path: Path) -> None:
    save(WEIGHTS, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert torch.equal(read_checkpoint(tmp_path / "b.pt").tensors["conv.bias"], WEIGHTS["conv.bias"])


def test_views_of_one_storage_and_aliases_are_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    path = save(
        {"a.weight": whole, "b.weight": whole, "c.weight": whole[1:], "d.weight": whole.t()},
        tmp_path / "a.pt",
    )
    found = read_checkpoint(path).tensors
    assert torch.equal(found["a.weight"], found["b.weight"])
    assert torch.equal(found["c.weight"], whole[1:])
    assert torch.equal(found["d.weight"], whole.t())


@pytest.mark.parametrize(
    ("make", "kind"),
    (
        (lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(2, 2).to(torch.float8_e4m3fn), "quantised"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex"),
        (lambda: torch.ones(2, device="meta"), "without values"),
    ),
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_numbers_are_refused(
    tmp_path: Path, make: Callable[[], torch.Tensor], kind: str
) -> None:
    path = save({"fc.weight": make()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"`fc.weight` is {kind}"):
        read_checkpoint(path)


def test_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    path = save({"evil\x1b[2Jname.weight": torch.ones(2, dtype=torch.complex64)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "\x1b" not in str(caught.value)
    assert r"evil\x1b[2Jname" in str(caught.value)


def test_pickles_with_hostile_opcodes_only_raise_our_error(tmp_path: Path) -> None:
    good = io.BytesIO()
    torch.save(WEIGHTS, good, _use_new_zipfile_serialization=False)
    path = tmp_path / "a.pt"
    for position in range(20, len(good.getvalue()) - 80, 3):
        data = bytearray(good.getvalue())
        data[position] ^= 0xFF
        path.write_bytes(bytes(data))
        try:
            read_checkpoint(path)
        except CheckpointError:
            continue


def test_a_few_values_repeated_endlessly_are_refused(tmp_path: Path) -> None:
    path = save({"fc.weight": torch.ones(1).expand(4, 10**12)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="16,000,000,000,000, which no checkpoint does"):
        read_checkpoint(path)
    buffer = torch.arange(8).expand(64, 8)
    path = save({"ids": buffer}, tmp_path / "b.pt")
    assert torch.equal(read_checkpoint(path).tensors["ids"], buffer)


def test_what_the_key_leads_to_is_not_named_as_something_else(tmp_path: Path) -> None:
    path = save({"module.w": torch.ones(2), "n_averaged": torch.tensor(3)}, tmp_path / "a.pt")
    found = read_checkpoint(path, key="module")
    assert (list(found.tensors), found.others) == (["w"], ("n_averaged",))
    assert read_checkpoint(path).others == ()
