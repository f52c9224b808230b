"""Save and load of networks made smaller by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from prunecli.errors import CheckpointError, OutputError, SpecError
from prunecli.export.record import METADATA_KEY, PrunedRecord
from prunecli.export.to_safetensors import load, save, to_bytes
from tests.export.small_nets import Pruned


def test_load_gives_the_saved_model_bit_for_bit(pruned: Pruned, home: Path) -> None:
    path = home / "x.safetensors"
    save(pruned.model, path, pruned.record, force=True)
    state = torch.random.get_rng_state()
    for loaded in (load(path, trust_spec=True), load(path, pruned.spec), load(path, home / "spec.toml")):
        assert torch.equal(loaded(pruned.inputs), pruned.model(pruned.inputs))
        assert not loaded.training
        assert to_bytes(loaded, pruned.record) == path.read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tied_and_hidden_and_listed_tensors_come_back_as_built(net: Pruned, tmp_path: Path) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    loaded = load(tmp_path / "x.safetensors", net.spec)
    assert loaded.tied.weight is loaded.up.weight
    assert loaded.listed[0] is loaded.up.bias
    assert "gain" not in loaded.state_dict()
    assert not loaded.conv.bias.requires_grad
    assert loaded.conv.weight.requires_grad
    assert loaded.sizes == (4, 3)
    assert loaded.plain.device.type == "cpu"


def test_the_file_holds_plain_tensors_once_and_one_record(net: Pruned, tmp_path: Path) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert list(file.metadata()) == [METADATA_KEY]
        found = PrunedRecord.from_json(file.metadata()[METADATA_KEY], "x.safetensors")
        assert "tied.weight" not in file.keys()  # noqa: SIM118  (no mapping)
    assert found == replace(net.record, aliases={"tied.weight": "up.weight"}, non_persistent=("gain",))


def test_saving_leaves_the_model_alone_and_takes_views(tmp_path: Path, net: Pruned) -> None:
    storage = torch.randn(100, 100)
    net.model.gain = storage[0, :8:2]
    net.model.conv.weight = nn.Parameter(net.model.conv.weight.to(memory_format=torch.channels_last))
    save(net.model, tmp_path / "x.safetensors", net.record)
    assert (tmp_path / "x.safetensors").stat().st_size < 8000
    assert net.model.gain.untyped_storage().nbytes() == 40_000
    loaded = load(tmp_path / "x.safetensors", net.spec)
    # a convolution of another memory format may sum in another order
    torch.testing.assert_close(loaded(net.inputs), net.model(net.inputs), rtol=1e-4, atol=1e-5)


def test_an_existing_file_needs_force(tmp_path: Path, net: Pruned) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    with pytest.raises(OutputError, match="there already"):
        save(net.model, tmp_path / "x.safetensors", net.record)
    save(net.model, tmp_path / "x.safetensors", net.record, force=True)


def test_a_spec_inside_the_file_is_not_trusted(tmp_path: Path, net: Pruned) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    with pytest.raises(SpecError, match=r"in Python `trust_spec=True`.*`spec=`"):
        load(tmp_path / "x.safetensors")


def test_a_file_without_a_spec_needs_one(tmp_path: Path, net: Pruned) -> None:
    save(net.model, tmp_path / "x.safetensors", replace(net.record, spec=None))
    with pytest.raises(CheckpointError, match="holds no spec"):
        load(tmp_path / "x.safetensors")
    assert torch.equal(load(tmp_path / "x.safetensors", net.spec)(net.inputs), net.model(net.inputs))


def change(path: Path, change_tensors: Callable[[dict[str, Tensor]], object], **fields: object) -> None:
    """Rewrite a pruned file with other tensors or fields."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        record = json.loads(file.metadata()[METADATA_KEY]) | fields
    change_tensors(tensors)
    safetensors.torch.save_file(tensors, path, {METADATA_KEY: json.dumps(record)})


@pytest.mark.parametrize(
    ("change_tensors", "fields", "message"),
    (
        (
            lambda t: t.pop("up.bias"),
            {},
            r"1 missing \(`up.bias`\), 0 unexpected.*`nets.py:Net` is what was pruned",
        ),
        (lambda t: t.update({"a.b": torch.ones(1)}), {}, r"0 missing, 1 unexpected \(`a.b`\)"),
        (
            lambda t: t.update({"up.bias": torch.ones(1, 6)}),
            {},
            "`up.bias` has 2 dimensions, but the model builds 1",
        ),
        (lambda t: None, {"aliases": {"tied.weight": "no"}}, "`tied.weight` is tied to `no`"),
        (lambda t: None, {"attributes": {"no": {"a": 1}}}, "no module `no`"),
        (lambda t: None, {"attributes": {"up": {"a": 1}}}, "module `up` has no size `a`"),
        (lambda t: None, {"rewritten": {"up": "Nobody"}}, "Nobody"),
        (lambda t: None, {"rewritten": {"no": "SizedMultiheadAttention"}}, "rewrites is not there"),
        (lambda t: t.update({"a.b": torch.ones(1)}), {"non_persistent": ["gain", "a.b"]}, "no module `a`"),
    ),
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path,
    net: Pruned,
    change_tensors: Callable[[dict[str, Tensor]], object],
    fields: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / "x.safetensors"
    save(net.model, path, net.record)
    change(path, change_tensors, **fields)
    with pytest.raises(CheckpointError, match=message):
        load(path, net.spec)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        load(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(tmp_path / "x.safetensors")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="was not written by prunecli"):
        load(tmp_path / "y.safetensors")


def test_what_the_format_cannot_hold_is_refused_by_name(net: Pruned) -> None:
    net.model.gain = torch.eye(4).to_sparse()
    with pytest.raises(OutputError, match="`gain` has layout torch.sparse_coo"):
        to_bytes(net.model, net.record)
    with pytest.raises(OutputError, match=r"`weight` has no values \(meta device\)"):
        to_bytes(nn.Linear(2, 2, device="meta"), PrunedRecord())


def test_state_that_is_no_tensor_is_refused() -> None:
    class Stateful(nn.Module):
        def get_extra_state(self) -> object:
            return {"seen": 3}

    with pytest.raises(OutputError, match="keeps state that is no tensor"):
        to_bytes(nn.Sequential(Stateful()), PrunedRecord())
