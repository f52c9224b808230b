"""Checkpoints without a spec: what `inspect` says they hold, and what `--spec auto` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from prunecli.architectures import Match
from prunecli.checkpoint import read_checkpoint
from prunecli.errors import MissingSpecError, SpecError, UsageError
from prunecli.pipeline.contents import Contents, inspect_file
from prunecli.pipeline.finding import spec_of
from prunecli.pipeline.inspect import Inspection
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.opening import open_model, open_new
from prunecli.pipeline.settings import Samples, Source
from prunecli.spec import InputSpec, read_spec, to_json_dict
from prunecli.spec.discovery import METADATA_KEY


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint as a training script leaves it."""
    model = torchvision.models.squeezenet1_1(num_classes=3)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("squeezenet") / "net.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}, "best": 91.7}, path)
    return path


def held(path: Path, **source: str) -> Contents:
    """Return what a checkpoint without a spec holds."""
    found = inspect_file(str(path), Source(**source), Samples(), Silent())  # type: ignore[arg-type]
    assert isinstance(found, Contents)
    return found


def test_a_bare_checkpoint_is_described(squeezenet: Path) -> None:
    found = held(squeezenet)
    assert (found.format, found.key, found.prefix) == ("torch zip", "state_dict", "module.")
    assert found.others == ("epoch", "optimizer", "best")
    assert found.choice == Match("torchvision:squeezenet1_1", {"num_classes": 3}, "module.")
    first = found.tensors[0]
    assert (first.name, first.shape, first.dtype) == ("module.features.0.weight", (64, 3, 3, 3), "float32")
    assert (first.values, first.bytes, first.not_finite) == (1728, 6912, 0)
    assert len(found.sha256) == 64


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")])
    tensors = {"a.weight": values.bfloat16(), "b": torch.arange(3)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = held(tmp_path / "a.safetensors")
    assert {each.dtype: each.not_finite for each in found.tensors} == {"bfloat16": 2, "int64": 0}
    assert found.metadata == {"format": "pt"}
    assert (found.matches, found.choice, found.prefix) == ((), None, "")


def test_a_spec_that_is_there_is_used(squeezenet: Path) -> None:
    notes = Notes()
    found = inspect_file(str(squeezenet), Source(spec="auto"), Samples(), notes)
    assert isinstance(found, Inspection)
    assert found.factory == "torchvision:squeezenet1_1"
    assert notes.notes[0] == "net.pth.tar has the tensors of torchvision:squeezenet1_1 with num_classes=3"


def test_auto_leaves_the_last_word_to_the_user(squeezenet: Path) -> None:
    source = Source(spec="auto", spec_arg=("dropout=0.1",), input=("3x64x64",))
    opened = open_model(str(squeezenet), source, Samples(data="random:8"), Silent())
    assert opened.spec.args == {"num_classes": 3, "dropout": 0.1}
    assert opened.spec.inputs == (InputSpec((3, 64, 64)),)
    assert opened.spec.data.sample == "random:8"


def test_an_error_names_what_the_checkpoint_looks_like(squeezenet: Path) -> None:
    with pytest.raises(
        MissingSpecError,
        match="looks like torchvision:squeezenet1_1 with num_classes=3: pass `--spec "
        "torchvision:squeezenet1_1 --spec-arg num_classes=3`, or `--spec auto`",
    ):
        open_model(str(squeezenet), Source(), Samples(), Silent())


def test_auto_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "my net.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(SpecError, match=r"no architecture of .*`my net.pt`\.\n.*`prunecli init 'my net.pt'`"):
        open_model(str(path), Source(spec="auto"), Samples(), Silent())
    with pytest.raises(MissingSpecError, match="does not say how to build its model. Name it"):
        open_model(str(path), Source(), Samples(), Silent())


def test_auto_refuses_to_choose_between_twins(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model("fasterrcnn_mobilenet_v3_large_fpn", weights_backbone=None)
    state = {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")  # one number for each tensor: the file is small
    with pytest.raises(
        SpecError, match="the tensors of several architectures. Pick one: `--spec torchvision:f"
    ):
        open_model(str(tmp_path / "net.pt"), Source(spec="auto"), Samples(), Silent())
    found = held(tmp_path / "net.pt")
    assert len(found.matches) == 2
    assert found.choice is None


def test_auto_names_the_nearest(squeezenet: Path, tmp_path: Path) -> None:
    state = torch.load(squeezenet)["state_dict"]
    torch.save({**state, "module.classifier.4.weight": torch.zeros(1)}, tmp_path / "net.pt")
    with pytest.raises(
        SpecError, match="Nearest: torchvision:squeezenet1_1 has all but `classifier`, which is"
    ):
        open_model(str(tmp_path / "net.pt"), Source(spec="auto"), Samples(), Silent())


def test_a_new_model_has_no_tensors_to_tell_it_by() -> None:
    with pytest.raises(UsageError, match="`--spec auto` tells a model by the tensors of its checkpoint"):
        open_new(Source(spec="auto"), Samples(), 0, Silent())


def test_auto_takes_the_spec_inside_a_pruned_file(tmp_path: Path) -> None:
    inside = json.dumps({"spec": to_json_dict(read_spec("torchvision:alexnet"))})
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {METADATA_KEY: inside})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    found = spec_of(checkpoint, Source(spec="auto"), Samples(), Silent())
    assert found.factory == "torchvision:alexnet"


@pytest.mark.parametrize("text", ('{"lr": 0.1}', "[1]", "{", "3"))
def test_the_configuration_of_another_program_is_none_of_the_model(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    torch.save({"fc.weight": torch.ones(2, 3)}, tmp_path / "a.pt")
    assert held(tmp_path / "a.pt").matches == ()
