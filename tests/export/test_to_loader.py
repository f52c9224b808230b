"""The stand-alone loader: what it needs, what it calls, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from prunecli.errors import CheckpointError, OutputError, SpecError
from prunecli.export.to_loader import write_loader
from prunecli.export.to_safetensors import save, to_bytes
from tests.export.small_nets import SOURCE, Pruned

LOAD_ALONE = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prunecli":
            raise ImportError("prunecli must not be needed")


sys.meta_path.insert(0, Blocker())
sys.path = [sys.argv[1], *(entry for entry in sys.path if entry)]
import torch

torch.set_num_threads(1)
from load_pruned import load

inputs, wanted = torch.load("case.pt")
assert torch.equal(load()(inputs), wanted)
"""


def test_the_written_loader_needs_torch_and_safetensors_alone(pruned: Pruned, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SOURCE, encoding="utf-8")
    save(pruned.model, tmp_path / "x.safetensors", pruned.record)
    text = write_loader(pruned.record, pruned.spec, "x.safetensors")
    assert ("class SizedMultiheadAttention" in text) == bool(pruned.record.rewritten)
    (tmp_path / "load_pruned.py").write_text(text, encoding="utf-8")
    torch.save((pruned.inputs, pruned.model(pruned.inputs).detach()), tmp_path / "case.pt")
    command = [sys.executable, "-W", "error", "-c", LOAD_ALONE, str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_spec_that_is_not_trusted_never_enters_the_loader(net: Pruned, tmp_path: Path) -> None:
    evil = 'torchvision:x"""\nimport os\n"""'
    for factory in ("nets.py:Net", "os:system"):
        text = write_loader(net.record, replace(net.spec, factory=factory, trusted=False))
        assert "Pass `factory`" in text
        assert "nets.py" not in text
    with pytest.raises((SpecError, ValueError)):
        write_loader(net.record, replace(net.spec, factory=evil))
    text = write_loader(net.record, None, 'a"b\n.safetensors')
    assert r'PRUNED = HERE / "a\"b\n.safetensors"' in text
    compile(text, "load_pruned.py", "exec")


def test_the_written_loader_refuses_files_it_was_not_written_for(net: Pruned, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "x.safetensors").write_bytes(
        to_bytes(net.model, replace(net.record, rewritten={"up": "Twin"}))
    )
    space: dict[str, object] = {"__file__": str(tmp_path / "load_pruned.py"), "__name__": "load_pruned"}
    exec(compile(write_loader(net.record, net.spec, "x.safetensors"), "load_pruned.py", "exec"), space)
    with pytest.raises(ValueError, match="written for a file without rewritten modules"):
        space["load"]()  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="`Twin`, which this prunecli does not know"):
        write_loader(replace(net.record, rewritten={"up": "Twin"}), net.spec)


@pytest.mark.parametrize(
    ("spec", "call"),
    (
        ("torchvision:resnet18", 'get_model("resnet18", weights=None)'),
        ("torchvision:googlenet", 'get_model("googlenet", weights=None, init_weights=False)'),
        ("timm:resnet10t.c3_in1k", 'timm.create_model("resnet10t.c3_in1k")'),
        ("package.module:Net", 'importlib.import_module("package.module")'),
    ),
)
def test_each_kind_of_factory_is_called_in_its_way(net: Pruned, spec: str, call: str) -> None:
    text = write_loader(net.record, replace(net.spec, factory=spec))
    assert call in text
    assert "\nimport sys\n" not in text


def test_arguments_of_the_factory_are_written_as_python(net: Pruned) -> None:
    spec = replace(net.spec, args={"width": 8, "name": 'a"b', "rates": [0.5, None]})
    assert r'found(width=8, name="a\"b", rates=[0.5, None])' in write_loader(net.record, spec)
    with pytest.raises(OutputError, match="argument `activation` of the factory cannot be written"):
        write_loader(net.record, replace(net.spec, args={"activation": nn.ReLU()}))
