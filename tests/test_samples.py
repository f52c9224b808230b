"""The sample models: present, small, honest about their accuracy, and retrained from their scripts."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from torch import nn

import prunecli
from prunecli.checkpoint import read_checkpoint

SAMPLES = Path(__file__).parents[1] / "sample_models"
NAMES = ("digits_mlp", "digits_cnn", "digits_resnet")


def checkpoint(name: str) -> Path:
    """Return the checkpoint of a sample: the file named model beside model.toml and model.py."""
    (found,) = (path for path in (SAMPLES / name).glob("model.*") if path.suffix in {".pt", ".safetensors"})
    return found


def load(name: str) -> nn.Module:
    """Load a sample the way a user does."""
    return load_from(name, checkpoint(name))


def load_from(name: str, path: Path) -> nn.Module:
    """Load a sample from any checkpoint of it."""
    return prunecli.load_model(prunecli.read_spec(SAMPLES / name / "model.toml"), read_checkpoint(path))


def measured_accuracy(model: nn.Module) -> float:
    """Return the share of right answers on the test images, by the code that trained the samples."""
    return importlib.import_module("sample_models.train").accuracy(model)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_small(name: str) -> None:
    assert checkpoint(name).stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_readme_states_the_accuracy_as_measured(name: str) -> None:
    text = (SAMPLES / name / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"^\| test accuracy \| ([\d.]+) % \|", text, re.MULTILINE)
    assert stated
    assert float(stated[1]) == pytest.approx(100 * measured_accuracy(load(name)), abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_readme_states_the_parameters(name: str) -> None:
    text = (SAMPLES / name / "README.md").read_text(encoding="utf-8")
    count = sum(parameter.numel() for parameter in load(name).parameters())
    assert f"| params | {count:,} |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_again_gives_as_good_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(f"sample_models.{name}.train")
    again = tmp_path / checkpoint(name).name
    monkeypatch.setattr(script, "CHECKPOINT", again)
    script.make_checkpoint()
    model = load_from(name, again)
    assert measured_accuracy(model) == pytest.approx(measured_accuracy(load(name)), abs=0.01)
