"""The sample models: present, small, honest about their accuracy, and retrained from their scripts."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.checkpoint import read_checkpoint
from prunecli.data import batches, evaluate, loss_function, open_data
from prunecli.model import build_model, build_on_meta, example_inputs
from prunecli.spec import ModelSpec

SAMPLES = Path(__file__).parents[1] / "sample_models"
NAMES = ("digits_mlp", "digits_cnn", "digits_resnet")

RESNET18 = [f"blocks.{block}.{conv}" for block in range(8) for conv in ("conv1", "conv2")]
UNTRAINED = {
    "mnist_mlp": (41_000, {"1": 50, "3": 30}),
    "lenet3": (121_182, {"conv1": 16, "conv2": 32, "fc1": 120, "fc2": 84}),
    "small_cnn": (563_424, {"0": 16, "3": 32, "7": 256, "9": 128}),
    "projected_resnet": (
        11_528_266,
        {"conv1": 64} | {name: 64 << (place // 4) for place, name in enumerate(RESNET18)},
    ),
    "vae": (
        85_183_619,
        {
            **{"encoder.0": 32, "encoder.2": 64, "encoder.5": 2048, "encoder.7": 4096},
            **{"decoder.0": 4096, "decoder.2": 2048, "decoder.4": 64, "decoder.7": 32},
        },
    ),
}
"""Name -> parameters, and the width of each group."""


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
    """Return the share of right answers on the test images, without the code of prunecli."""
    with np.load(SAMPLES / "digits.npz") as digits:
        images = torch.from_numpy(digits["test_images"]).float() / 255
        labels = torch.from_numpy(digits["test_labels"]).long()
    with torch.no_grad():
        return (model((images - 0.3) / 0.37).argmax(1) == labels).double().mean().item()


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


def test_every_sample_is_tested() -> None:
    assert {path.parent.name for path in SAMPLES.glob("*/model.toml")} == {*NAMES, *UNTRAINED}


@pytest.mark.parametrize("name", UNTRAINED)
def test_an_untrained_sample_has_the_size_and_groups_it_is_known_for(name: str) -> None:
    spec = prunecli.read_spec(SAMPLES / name / "model.toml")
    model = build_on_meta(spec)
    params, groups = UNTRAINED[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    args, kwargs = example_inputs(spec)
    assert {group.name: group.width for group in prunecli.find_groups(model, args, kwargs).groups} == groups
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[{name}\]\({name}\) \| .+ \| {params:,} \|$", readme, re.MULTILINE)


def test_a_projected_resnet_may_be_as_small_as_resnet20() -> None:
    spec = prunecli.read_spec(
        SAMPLES / "projected_resnet" / "model.toml",
        spec_args={"widths": [16, 32, 64], "blocks": [3, 3, 3], "classes": 7},
    )
    model = build_model(spec)
    args, kwargs = example_inputs(spec)
    widths = [group.width for group in prunecli.find_groups(model, args, kwargs).groups]
    assert widths == [16] + [16] * 6 + [32] * 6 + [64] * 6
    assert model(*args).shape == (1, 7)


def small_vae() -> tuple[ModelSpec, nn.Module]:
    """Build a VAE for MNIST."""
    spec = prunecli.read_spec(
        SAMPLES / "vae" / "model.toml",
        spec_args={"channels": 1, "size": 28, "convs": [4, 8], "hidden": [16, 12], "latent": 3},
        input=["1x28x28"],
    )
    return spec, build_model(spec)


def test_a_vae_draws_noise_in_training_only() -> None:
    _, model = small_vae()
    images = torch.rand(5, 1, 28, 28)
    logits, mean, log_variance = model(images)
    assert logits.shape == images.shape
    assert mean.shape == log_variance.shape == (5, 3)
    assert torch.equal(model(images)[0], logits)
    assert torch.equal(model.decoder(mean), logits)  # type: ignore[operator]
    model.train()
    assert not torch.equal(model(images)[0], model(images)[0])


def test_the_loss_of_a_vae_is_that_of_the_paper() -> None:
    spec, model = small_vae()
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        logits, mean, log_variance = output = model.double()(images)
    expected = 0.0
    for image, logit, mu, lv in zip(images, logits.sigmoid(), mean, log_variance, strict=True):
        pixels = image * logit.log() + (1 - image) * (1 - logit).log()
        expected -= float(pixels.sum()) + 0.5 * float((1 + lv - mu**2 - lv.exp()).sum())
    assert float(loss_function(spec)(output, images)) == pytest.approx(expected / 5)


def test_a_vae_is_scored_without_labels_and_cut(tmp_path: Path) -> None:
    spec, model = small_vae()
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8))
    data = open_data(f"npz:{tmp_path / 'a.npz'}", spec)
    structure = prunecli.find_groups(model, *example_inputs(spec))
    scores = prunecli.score(
        model, structure, methods=["taylor-fo"], batches=batches(data, 10), loss_fn=loss_function(spec)
    )
    plan = prunecli.make_plan(structure, scores["taylor-fo"], budget="keep=0.5")
    smaller = prunecli.apply_plan(model, structure, plan)
    (images,) = data.batch(range(2))[0]
    assert isinstance(images, Tensor)
    assert prunecli.verify(model, smaller, structure, plan, (images,))
    before, after = (evaluate(net, batches(data, 10), spec) for net in (model, smaller))
    assert (before.top1, after.top1) == (None, None)
    assert 0 < after.loss < 2 * before.loss


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
