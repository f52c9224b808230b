"""Folders of `torch.distributed.checkpoint`: converted without unpickling anything freely."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from prunecli.checkpoint import Format, read_checkpoint
from prunecli.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")


def saved(folder: Path, content: dict[str, Any]) -> Path:
    dcp.save(content, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return folder


def test_a_nested_state_is_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    folder = saved(
        tmp_path / "dcp", {"model": model.state_dict(), "optim": {"state": {"0": torch.ones(2)}}, "epoch": 3}
    )
    found = read_checkpoint(folder)
    assert (found.format, found.wrapper) == (Format.DCP, "model")
    assert found.tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in model.state_dict().items())


def test_a_plain_state_is_read(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path / "dcp", dict(nn.Linear(2, 3).state_dict())))
    assert (found.wrapper, set(found.tensors)) == (None, {"weight", "bias"})


def test_enumerations_may_be_pickled_by_getattr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.11.0 to 3.11.3 do it."""
    kind = _MEM_FORMAT_ENCODING
    monkeypatch.setattr(kind, "__reduce_ex__", lambda self, _: (getattr, (kind, self.name)))
    folder = saved(tmp_path / "dcp", dict(nn.Linear(2, 3).state_dict()))
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert set(read_checkpoint(folder).tensors) == {"weight", "bias"}


@pytest.mark.parametrize("name", ("__init__", "mro", "TORCH_CONTIGUOUS_FORMA"))
@pytest.mark.parametrize("kind", (dcp.Metadata, _MEM_FORMAT_ENCODING))
def test_getattr_gives_members_and_nothing_else(kind: type, name: str, tmp_path: Path) -> None:
    class Reaching:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (kind, name)

    folder = saved(tmp_path / "dcp", dict(nn.Linear(2, 3).state_dict()))
    (folder / ".metadata").write_bytes(pickle.dumps(Reaching()))
    with pytest.raises(CheckpointError, match="it would run code of `builtins.getattr`"):
        read_checkpoint(folder)


class Payload:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_the_index_does_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", dict(nn.Linear(2, 3).state_dict()))
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"cannot be read safely: it would run code of `.*`"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_other_values_does_not_run(tmp_path: Path) -> None:
    content = {"model": dict(nn.Linear(2, 3).state_dict()), "extra": Payload(tmp_path / "ran")}
    folder = saved(tmp_path / "dcp", content)
    assert read_checkpoint(folder).wrapper == "model"
    assert not (tmp_path / "ran").exists()


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", dict(nn.Linear(2, 3).state_dict()))
    index = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(index[:50])
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_checkpoint(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(torch.Size([2])))
    with pytest.raises(CheckpointError, match="is no index of a distributed checkpoint"):
        read_checkpoint(folder)
    (folder / ".metadata").write_bytes(index)
    data = next(folder.glob("*.distcp"))
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is damaged: EOFError"):
        read_checkpoint(folder)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file `.*distcp`"):
        read_checkpoint(folder)


def changed_index(folder: Path, change: Any) -> None:
    index = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def test_the_index_cannot_lead_out_of_the_folder_or_claim_memory(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dcp", dict(nn.Linear(2, 3).state_dict()))

    def escape(index: Any) -> None:
        for info in index.storage_data.values():
            object.__setattr__(info, "relative_path", "../secret")

    def grow(index: Any) -> None:
        for entry in index.state_dict_metadata.values():
            entry.size = torch.Size([10**12])

    original = (folder / ".metadata").read_bytes()
    changed_index(folder, escape)
    with pytest.raises(CheckpointError, match=r"names the file `../secret`, which is not a plain file name"):
        read_checkpoint(folder)
    (folder / ".metadata").write_bytes(original)
    changed_index(folder, grow)
    with pytest.raises(CheckpointError, match="claims .* bytes, but its files hold"):
        read_checkpoint(folder)


@pytest.mark.filterwarnings("error:torch.distributed is disabled")
def test_nobody_is_told_that_one_process_reads(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = saved(tmp_path / "dcp", {"w": torch.ones(2)})
    assert torch.equal(read_checkpoint(folder).tensors["w"], torch.ones(2))
