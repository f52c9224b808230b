"""Sources that are files of others: idx, folders of pictures, the datasets of torchvision."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunecli.data import batches, open_data
from prunecli.errors import DataError
from prunecli.spec import DataSpec
from tests.data.small_data import IMAGES, LABELS, spec_of


def idx(array: np.ndarray[Any, Any], code: int = 0x08) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("pack", (bytes, gzip.compress), ids=("plain", "gzip"))
def test_idx_files_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "images").write_bytes(pack(idx(IMAGES[:, 0])))
    (tmp_path / "labels").write_bytes(pack(idx(LABELS.astype(">i4"), 0x0C)))
    data = open_data("idx:images,labels[1:3]", spec_of(1, 3, 4, base=tmp_path))
    assert len(data) == 2
    (inputs,), target = data[0]
    assert torch.equal(inputs, torch.from_numpy(IMAGES[1, :1]).float() / 255)  # type: ignore[arg-type]
    assert int(target) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (b"nonsense", "is no idx file .it begins with 6e 6f 6e 73"),
        (b"", "is no idx file"),
        (idx(IMAGES)[:-3], "should hold 144 bytes of shape .6, 2, 3, 4., but holds 141"),
        (idx(IMAGES) + b"x", "but holds more"),
        (gzip.compress(idx(IMAGES))[:-12], "cannot be read"),
    ),
)
def test_wrong_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    (tmp_path / "labels").write_bytes(idx(LABELS))
    with pytest.raises(DataError, match=message):
        open_data("idx:images,labels", spec_of(2, 3, 4, base=tmp_path))


def test_an_idx_file_alone_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx(IMAGES[:, 0]))
    data = open_data("idx:images[2:]", spec_of(1, 3, 4, base=tmp_path))
    (inputs,), target = data[0]
    assert torch.equal(inputs, torch.from_numpy(IMAGES[2, :1]).float() / 255)  # type: ignore[arg-type]
    assert target is None


def test_idx_takes_at_most_two_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names more than two files"):
        open_data("idx:images,labels,more", spec_of(1, 3, 4, base=tmp_path))
    with pytest.raises(DataError, match=r"there is no file `.*images`"):
        open_data("idx:images,labels", spec_of(1, 3, 4, base=tmp_path))


def pictures(folder: Path, size: tuple[int, int] = (40, 30)) -> Path:
    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 255, 0))):
        (folder / label).mkdir(parents=True)
        Image.new("RGB", size, colour).save(folder / label / "1.png")
    return folder


def test_a_folder_of_pictures_is_read(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    data = open_data("imagefolder:pictures", spec_of(3, 16, 16, base=tmp_path))
    ((inputs, targets),) = batches(data, 8)
    (found,) = inputs
    assert targets.tolist() == [0, 1]
    assert found.shape == (2, 3, 16, 16)
    assert found[1, :, 8, 8].tolist() == [0, 1, 0]


def test_pictures_are_resized_and_cropped_like_in_torchvision(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "pictures" / "a" / "1.png")
    reference = v2.Compose(
        [
            v2.Resize(32, antialias=True),
            v2.CenterCrop(28),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )(picture)
    (found,), _ = open_data("imagefolder:pictures", spec_of(3, 28, 28, base=tmp_path))[0]
    assert torch.allclose(found, reference.as_subclass(torch.Tensor))  # type: ignore[arg-type]
    chosen = replace(spec_of(3, 20, 20, base=tmp_path), data=DataSpec(resize=25, crop=20))
    (found,), _ = open_data("imagefolder:pictures", chosen)[0]
    assert found.shape == (3, 20, 20)  # type: ignore[attr-defined]


def test_pictures_become_grey_for_one_channel(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    (found,), _ = open_data("imagefolder:pictures", spec_of(1, 8, 8, base=tmp_path))[0]
    assert found.shape == (1, 8, 8)  # type: ignore[attr-defined]


def test_wrong_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        open_data("imagefolder:pictures", spec_of(3, 8, 8, base=tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one subfolder of pictures per class"):
        open_data("imagefolder:empty", spec_of(3, 8, 8, base=tmp_path))
    pictures(tmp_path / "pictures")
    with pytest.raises(DataError, match=r"one input of shape \[channels, height, width\], not \[8\]"):
        open_data("imagefolder:pictures", spec_of(8, base=tmp_path))
    with pytest.raises(DataError, match="1 or 3 channels, but the spec's input has 5"):
        open_data("imagefolder:pictures", spec_of(5, 8, 8, base=tmp_path))
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="1.png` is no picture, or a damaged one. Take it out"):
        open_data("imagefolder:pictures", spec_of(3, 8, 8, base=tmp_path))[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)


@pytest.mark.usefixtures("cache")
def test_a_torchvision_dataset_is_read_from_the_cache(tmp_path: Path) -> None:
    raw = tmp_path / "prunecli" / "datasets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in (("t10k-images-idx3-ubyte", IMAGES[:, 0]), ("t10k-labels-idx1-ubyte", LABELS)):
        (raw / name).write_bytes(idx(array))
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).write_bytes(idx(np.zeros((1, 3, 4) if "images" in name else (1,), np.uint8)))
    data = open_data("torchvision:MNIST?split=test[:3]", spec_of(1, 3, 4))
    assert len(data) == 3
    (inputs,), target = data[2]
    assert torch.equal(inputs, torch.from_numpy(IMAGES[2, :1]).float() / 255)  # type: ignore[arg-type]
    assert int(target) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    (
        ("torchvision:CIFAR10?split=test", "is not in the cache .*Pass `--download` to fetch it"),
        ("torchvision:CIFAR11", "no dataset `CIFAR11`: did you mean `CIFAR10`"),
        ("torchvision:os", "no dataset `os`"),
        ("torchvision:ImageFolder?root=x", "`root` cannot be set here|no dataset"),
        ("torchvision:CIFAR10?split=val", "has the splits train and test, not `val`"),
        ("torchvision:CIFAR10?split", "write settings as in"),
        ("torchvision:CIFAR10?download=true", "`download` cannot be set here"),
        ("torchvision:CIFAR10?nope=3", "does not take these settings"),
    ),
)
@pytest.mark.usefixtures("cache")
def test_wrong_torchvision_datasets_are_named(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(source, spec_of(3, 32, 32))
