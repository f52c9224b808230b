"""Transformers of torchvision that were made smaller: saved, loaded with prunecli and without, exported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunecli.export.record import PrunedRecord, write_sizes
from prunecli.export.to_loader import write_loader
from prunecli.export.to_onnx import to_onnx
from prunecli.export.to_safetensors import load, save
from prunecli.graph.cutting import attribute_values
from prunecli.graph.groups import find_groups
from prunecli.model import build_model, example_inputs
from prunecli.spec import ModelSpec, read_spec, to_json_dict
from prunecli.surgery import apply_plan
from tests import vision
from tests.graph.cutting import random_plan, shake

NAMES = [build.__name__ for build in vision.ALL]


@dataclass(frozen=True)
class Pruned:
    """Half of a network, and what its file says."""

    model: nn.Module
    record: PrunedRecord
    spec: ModelSpec
    inputs: Tensor


def pruned(name: str, folder: Path) -> Pruned:
    (folder / "vision.py").write_text(Path(vision.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "spec.toml").write_text(
        f'[model]\nfactory = "vision.py:{name}"\n[input]\nshape = [3, {vision.SIZE}, {vision.SIZE}]\n'
    )
    spec = read_spec(folder / "spec.toml")
    torch.manual_seed(0)
    model = shake(build_model(spec))
    inputs = torch.randn(2, 3, vision.SIZE, vision.SIZE)
    structure = find_groups(model, (inputs[:1],))
    plan = random_plan(structure)
    smaller = apply_plan(model, structure, plan)
    record = PrunedRecord(
        spec=to_json_dict(spec),
        attributes=write_sizes(attribute_values(structure, plan.kept(), model)),
        rewritten=structure.rewritten,
    )
    return Pruned(smaller, record, spec, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_network_back(name: str, tmp_path: Path) -> None:
    """By `load`, and by the loader that it needs no prunecli for."""
    case = pruned(name, tmp_path)
    assert case.record.rewritten
    path = tmp_path / "x.safetensors"
    save(case.model, path, case.record)
    wanted = case.model(case.inputs)
    assert torch.equal(load(path, trust_spec=True)(case.inputs), wanted)
    text = write_loader(case.record, case.spec, path.name)
    assert "import prunecli" not in text
    assert "from prunecli" not in text
    space: dict[str, object] = {"__file__": str(tmp_path / "load_pruned.py"), "__name__": "load_pruned"}
    exec(compile(text, "load_pruned.py", "exec"), space)
    found = space["load"]()  # type: ignore[operator]
    assert torch.equal(found(case.inputs), wanted)
    twins = {type(module).__name__: type(module).__module__ for module in found.modules()}
    assert {twins[twin] for twin in case.record.rewritten.values()} == {"load_pruned"}


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_file_can_be_pruned_again(name: str, tmp_path: Path) -> None:
    """Twins stay twins, and keep the scale of the first network."""
    case = pruned(name, tmp_path)
    structure = find_groups(case.model, (case.inputs[:1],))
    smaller = apply_plan(case.model, structure, random_plan(structure, seed=1))
    twins = [type(smaller.get_submodule(where)).__name__ for where in case.record.rewritten]
    assert twins == list(case.record.rewritten.values())
    assert smaller(case.inputs).shape == (2, 5)
    for where in case.record.rewritten:
        before, after = case.model.get_submodule(where), smaller.get_submodule(where)
        assert getattr(before, "scale", None) == getattr(after, "scale", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_onnx_says_the_same(name: str, tmp_path: Path) -> None:
    case = pruned(name, tmp_path)
    assert to_onnx(case.model, partial(example_inputs, case.spec)).check.error <= 1e-5
