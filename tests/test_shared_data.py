"""Real files: an old CIFAR-10 checkpoint, CIFAR-10 as npz, MNIST as idx. Skipped where they are absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from prunecli.checkpoint import Format, load_into, read_checkpoint
from prunecli.data import batches, evaluate, loss_function, open_data
from prunecli.model import build_model, example_inputs
from prunecli.spec import InputSpec, ModelSpec, read_spec
from prunecli.spec.model_spec import change_paths

SHARED = Path(os.environ.get("PRUNECLI_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"

pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared data is not here (set PRUNECLI_SHARED)"
)

RESNET20 = Path(__file__).parents[1] / "benchmarks" / "cifar" / "resnet.py"

SPECS = Path(__file__).parents[1] / "benchmarks" / "specs"

SPEC = """
[model]
factory = "resnet.py:ResNet"
[input]
shape = [3, 32, 32]
[data]
test = "npz:{data}/cifar10_test.npz[:1000]"
normalize = {{ mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}
"""


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    shutil.copy(RESNET20, tmp_path / "resnet.py")
    (tmp_path / "resnet.toml").write_text(SPEC.format(data=SHARED))
    return read_spec(tmp_path / "resnet.toml")


def test_the_old_resnet20_has_the_accuracy_that_its_author_states(spec: ModelSpec) -> None:
    checkpoint = read_checkpoint(SHARED / "checkpoints" / "resnet20-12fca82f.th")
    assert (checkpoint.format, checkpoint.wrapper) == (Format.TORCH_LEGACY, "state_dict")
    assert checkpoint.digest.startswith("12fca82f")
    model = build_model(spec)
    report = load_into(model, checkpoint, spec)
    assert report.prefix == "module."
    data = open_data(str(spec.data.test), spec)
    found = evaluate(model, batches(data, 250), spec)
    assert found.samples == 1000
    assert found.top1 == pytest.approx(0.9173, abs=0.02)


def test_its_safetensors_twin_is_the_same_model(spec: ModelSpec) -> None:
    twin = read_checkpoint(SHARED / "checkpoints" / "akamaster_resnet20_cifar10.safetensors")
    original = read_checkpoint(SHARED / "checkpoints" / "resnet20-12fca82f.th")
    model, other = build_model(spec), build_model(spec)
    load_into(model, twin, spec)
    load_into(other, original, spec)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_mnist_is_read_from_gzipped_idx() -> None:
    spec = ModelSpec("torchvision:resnet18", inputs=(InputSpec((1, 28, 28)),))
    names = ",".join(
        str(SHARED / "mnist" / f"t10k-{part}.gz") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    data = open_data(f"idx:{names}", spec)
    (inputs,), target = data[0]
    assert len(data) == 10_000
    assert int(target) == 7
    assert inputs.shape == (1, 28, 28)  # type: ignore[attr-defined]
    labels = np.concatenate([targets.numpy() for _, targets in batches(data, 1000)])
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.toml")))
def test_specs_of_benchmarks_name_what_is_there(name: str) -> None:
    spec = read_spec(SPECS / f"{name}.toml")
    args, kwargs = example_inputs(spec)
    build_model(spec)(*args, **kwargs)
    loss_function(spec)
    named: list[Path] = []
    for source in (spec.data.sample, spec.data.train, spec.data.test):
        change_paths(str(source), lambda path: named.append(spec.resolve(path.partition("[")[0])) or path)
    assert len(named) >= 3
    assert all(path.is_file() for path in named)


@pytest.mark.slow
def test_all_training_images_of_cifar10_are_joined() -> None:
    data = open_data("../cifar/whole.py:train", read_spec(SPECS / "lenet3.toml"))
    assert len(data) == 50_000
    with np.load(SHARED / "cifar10_train10k.npz") as known:
        index, images = known["index"], known["images"]
    found, _ = data.fetch(index[:500].tolist())
    assert np.array_equal(found.numpy(), images[:500])
    pixels, labels = data.fetch(range(50_000))
    assert np.bincount(labels).tolist() == [5_000] * 10
    means = [float(channel.float().mean()) / 255 for channel in pixels.unbind(1)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
