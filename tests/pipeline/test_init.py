"""Specs to start from: what they say of checkpoints that are known, and of others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from prunecli.errors import OutputError, UsageError
from prunecli.pipeline.init import init
from prunecli.pipeline.inspect import inspect
from prunecli.pipeline.settings import Samples, Source
from prunecli.spec import InputSpec, read_spec
from prunecli.spec.discovery import METADATA_KEY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def saved(path: Path, model: nn.Module) -> str:
    """Save a model's parameters, and return where."""
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture
def squeezenet(tmp_path: Path) -> str:
    """Return a checkpoint of a network of torchvision."""
    return saved(tmp_path / "net.pt", torchvision.models.squeezenet1_1(num_classes=3))


def test_a_known_network_needs_nothing_more(squeezenet: str, golden, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    started = init(squeezenet)
    assert started.path == tmp_path / "net.toml"
    text = started.path.read_text(encoding="utf-8")
    golden("starter-known.toml", text)
    spec = read_spec(started.path)
    assert (spec.factory, spec.args) == ("torchvision:squeezenet1_1", {"num_classes": 3})
    assert spec.inputs == (InputSpec((3, 224, 224)),)
    assert inspect(squeezenet).factory == "torchvision:squeezenet1_1"


def test_an_unknown_network_leaves_blanks(tmp_path: Path, golden) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))
    started = init(saved(tmp_path / "net.pt", model))
    golden("starter-unknown.toml", started.path.read_text(encoding="utf-8"))
    spec = read_spec(started.path)
    assert (spec.factory, spec.inputs) == ("model.py:build", (InputSpec((1, 32, 32)),))


@pytest.mark.parametrize(
    ("layer", "item"),
    (
        (nn.Linear(20, 3), InputSpec((20,))),
        (nn.Conv1d(5, 3, 3), InputSpec((5, 128))),
        (nn.Conv2d(3, 8, 7), InputSpec((3, 224, 224))),
        (nn.Conv3d(3, 2, 3), InputSpec((3, 16, 112, 112))),
        (nn.Embedding(100, 8), InputSpec((128,), "int64", high=100)),
        (nn.BatchNorm1d(3), InputSpec((1,))),
        (nn.Embedding(0, 0), InputSpec((1,))),
    ),
    ids=lambda value: type(value).__name__,
)
def test_the_first_layer_tells_the_input(layer: nn.Module, item: InputSpec, tmp_path: Path) -> None:
    started = init(saved(tmp_path / "net.pt", nn.ModuleDict({"embedding": layer})))
    assert read_spec(started.path).inputs == (item,)


def test_what_is_typed_is_written_down(
    squeezenet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = Samples(data="random:8", train_data="npz:here/a.npz[:9]", test_data="imagefolder:test")
    started = init(squeezenet, Source(input=("3x64x64",)), samples, "specs")
    assert started.path == Path("specs/net.toml")
    assert not started.is_beside
    spec = read_spec(started.path)
    assert spec.inputs == (InputSpec((3, 64, 64)),)
    assert (spec.data.sample, spec.data.train) == ("random:8", "npz:../here/a.npz[:9]")
    assert spec.data.test == "imagefolder:../test"


def test_every_commented_key_is_one(squeezenet: str) -> None:
    lines = init(squeezenet).starter.text.splitlines()
    keys = [line.removeprefix("# ") if " = " in line and not line.endswith(".") else line for line in lines]
    table = tomllib.loads("\n".join(keys))
    assert table["data"].keys() == {"sample", "train", "test", "normalize", "resize", "crop"}
    assert table["input"].keys() == {"shape", "dtype", "name"}


def test_a_folder_of_hugging_face_says_itself_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "bert.v2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    save_file({"embed.weight": torch.zeros(9, 2)}, folder / "model.safetensors")
    started = init(str(folder))
    assert started.path == tmp_path / "bert.v2.toml"
    assert started.starter.factory == "hf:bert.v2"
    assert "# What builds the network: the folder has a config.json.\n" in started.starter.text


def test_a_network_with_another_classifier_is_said_to_be_near(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1()
    model.classifier = nn.Linear(512, 3)
    text = init(saved(tmp_path / "net.pt", model)).starter.text
    assert "# Nearly torchvision:squeezenet1_1: all but `classifier`, which is another.\n" in text


def test_twins_are_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model("fasterrcnn_mobilenet_v3_large_fpn", weights_backbone=None)
    state = {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    starter = init(str(tmp_path / "net.pt")).starter
    assert starter.same == ("torchvision:fasterrcnn_mobilenet_v3_large_fpn",)
    assert "perhaps another network: torchvision:fasterrcnn_mobilenet_v3_large_fpn\n" in starter.text


def test_names_stay_in_their_comment(tmp_path: Path) -> None:
    name = 'a\n[data]\nsample = "evil.py:data"\x1b[31m.weight'
    torch.save({name: torch.zeros(3, 2)}, tmp_path / "net.pt")
    started = init(str(tmp_path / "net.pt"))
    assert read_spec(started.path).data.sample is None
    assert "\x1b" not in started.starter.text


def test_a_spec_that_is_there_stays(squeezenet: str, tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text("mine")
    with pytest.raises(OutputError, match=r"net.toml` is there already. Use `--force`"):
        init(squeezenet)
    assert (tmp_path / "net.toml").read_text() == "mine"
    assert init(squeezenet, force=True).path.read_text() != "mine"


def test_out_is_a_folder_or_a_toml_file(squeezenet: str, tmp_path: Path) -> None:
    assert init(squeezenet, out=str(tmp_path / "other.toml")).path.is_file()
    with pytest.raises(UsageError, match=r"name a folder, or a file that ends in .toml"):
        init(squeezenet, out=str(tmp_path / "spec.json"))


def test_a_pruned_file_needs_no_spec(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {METADATA_KEY: "{}"})
    with pytest.raises(UsageError, match="was written by prunecli and holds its spec"):
        init(str(tmp_path / "a.safetensors"))


def test_a_spec_holds_no_names_that_are_no_text(squeezenet: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot hold `sample = .*udcff"):
        init(squeezenet, samples=Samples(data="npz:\udcff.npz"), out=str(tmp_path / "a.toml"))
    assert not list(tmp_path.glob("a.toml"))
