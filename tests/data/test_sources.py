"""Sources of samples: each form, each slice, each way to be wrong."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunecli.data import SyntheticDataWarning, batches, open_data
from prunecli.errors import DataError, SpecError
from prunecli.spec import DataSpec, InputSpec, ModelSpec, Normalize, TaskSpec

IMAGES = np.arange(6 * 2 * 3 * 4, dtype=np.uint8).reshape(6, 2, 3, 4)
LABELS = np.arange(6, dtype=np.uint8)


def spec_of(*shape: int, base: Path = Path(), **options: Any) -> ModelSpec:
    return ModelSpec("torchvision:resnet18", inputs=(InputSpec(shape, **options),), base=base)


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


def test_bytes_become_floats_from_0_to_1(tmp_path: Path) -> None:
    npz(tmp_path, images=IMAGES, labels=LABELS)
    inputs, target = open_data("npz:a.npz", spec_of(2, 3, 4, base=tmp_path))[5]
    assert torch.equal(inputs[0], torch.from_numpy(IMAGES[5]).float() / 255)  # type: ignore[index]
    assert (target.dtype, int(target)) == (torch.int64, 5)


@pytest.mark.parametrize(
    ("images", "shape", "options", "expected"),
    (
        (IMAGES.transpose(0, 2, 3, 1), (2, 3, 4), {}, IMAGES / 255),
        (IMAGES[:, 0], (1, 3, 4), {}, IMAGES[:, :1] / 255),
        (IMAGES, (24,), {}, IMAGES.reshape(6, 24) / 255),
        (IMAGES.astype(np.float64), (2, 3, 4), {}, IMAGES),
        (IMAGES.astype(np.int32), (2, 3, 4), {}, IMAGES),
        (IMAGES.astype(np.uint16), (2, 3, 4), {}, IMAGES),
        (IMAGES.astype(">f4"), (2, 3, 4), {}, IMAGES),
        (IMAGES, (2, 3, 4), {"dtype": "int64"}, IMAGES),
        (np.ones((6, 5, 5, 5), np.float32), (5, 5, 5), {}, np.ones((6, 5, 5, 5))),
    ),
    ids=("nhwc", "nhw", "flat", "float", "int", "uint16", "big-endian", "tokens", "cube"),
)
def test_layouts_and_dtypes_follow_the_spec(
    tmp_path: Path, images: Any, shape: tuple[int, ...], options: dict[str, Any], expected: Any
) -> None:
    npz(tmp_path, images=images, labels=LABELS)
    ((inputs, _),) = batches(open_data("npz:a.npz", spec_of(*shape, base=tmp_path, **options)), 6)
    (found,) = inputs
    assert found.dtype is getattr(torch, options.get("dtype", "float32"))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_parts_and_slices(tmp_path: Path) -> None:
    npz(tmp_path, train_images=IMAGES, train_labels=LABELS, test_images=IMAGES[:2], test_labels=LABELS[:2])
    spec = spec_of(2, 3, 4, base=tmp_path)
    found = {
        text: [
            int(target)
            for _, targets in batches(open_data(f"npz:a.npz{text}", spec), 4)
            for target in targets
        ]
        for text in (
            "#train",
            "#test",
            "#train[:2]",
            "#train[2:]",
            "#train[-2:]",
            "#train[::3]",
            "#train[::-1]",
        )
    }
    assert found == {
        "#train": [0, 1, 2, 3, 4, 5],
        "#test": [0, 1],
        "#train[:2]": [0, 1],
        "#train[2:]": [2, 3, 4, 5],
        "#train[-2:]": [4, 5],
        "#train[::3]": [0, 3],
        "#train[::-1]": [5, 4, 3, 2, 1, 0],
    }


def test_normalisation_is_per_channel(tmp_path: Path) -> None:
    npz(tmp_path, images=IMAGES, labels=LABELS)
    spec = replace(
        spec_of(2, 3, 4, base=tmp_path), data=DataSpec(normalize=Normalize((0.5, 0.1), (0.25, 2.0)))
    )
    (inputs,), _ = open_data("npz:a.npz", spec)[1]
    expected = (IMAGES[1] / 255 - np.array([0.5, 0.1])[:, None, None]) / np.array([0.25, 2.0])[:, None, None]
    np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-5)  # type: ignore[attr-defined]
    wrong = replace(spec, data=DataSpec(normalize=Normalize((0.5,) * 3, (0.25,) * 3)))
    with pytest.raises(
        DataError, match="normalize has 3 means, but the samples of `npz:a.npz` have 2 channels"
    ):
        open_data("npz:a.npz", wrong)[0]


@pytest.mark.parametrize(
    ("arrays", "source", "message"),
    (
        ({"x": IMAGES}, "npz:a.npz", "no array `images`, only x"),
        ({"images": IMAGES, "labels": LABELS}, "npz:a.npz#val", "no array `val_images`.*`npz:FILE#train`"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "npz:a.npz", "6 images, but 3 labels"),
        ({"images": IMAGES, "labels": np.array(["a"] * 6)}, "npz:a.npz", "labels is an array of <U1"),
        ({"images": IMAGES, "labels": 3}, "npz:a.npz", r"with shape \(\)"),
        ({"images": np.array([None]), "labels": [1]}, "npz:a.npz", "cannot be read: Object arrays"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "npz:a.npz", "has no samples: the source has 0"),
        (
            {"images": IMAGES, "labels": LABELS},
            "npz:a.npz[9:]",
            "the source has 6, and the slice leaves none",
        ),
        ({}, "npz:b.npz", "there is no file `.*b.npz`"),
    ),
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], source: str, message: str) -> None:
    npz(tmp_path, **arrays)
    with pytest.raises(DataError, match=message):
        open_data(source, spec_of(2, 3, 4, base=tmp_path))


def test_files_that_are_no_npz_are_named(tmp_path: Path) -> None:
    spec = spec_of(2, 3, 4, base=tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match="cannot be read"):
        open_data("npz:a.npz", spec)
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(DataError, match="holds one bare array"):
        open_data("npz:a.npy", spec)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    (
        ((3, 3, 4), {}, r"samples of shape \[2, 3, 4\], but the spec's input is \[3, 3, 4\].*`--input`"),
        ((25,), {}, r"samples of shape \[2, 3, 4\]"),
        ((2, 4, 3), {}, "samples of shape"),
    ),
)
def test_samples_that_do_not_fit_are_refused(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    npz(tmp_path, images=IMAGES, labels=LABELS)
    with pytest.raises(DataError, match=message):
        open_data("npz:a.npz", spec_of(*shape, base=tmp_path, **options))[0]


def test_floats_are_no_tokens(tmp_path: Path) -> None:
    npz(tmp_path, images=IMAGES.astype(np.float32), labels=LABELS)
    with pytest.raises(DataError, match=r"gives torch.float32, but the spec's input is int64"):
        open_data("npz:a.npz", spec_of(2, 3, 4, base=tmp_path, dtype="int64"))[0]


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


def test_idx_needs_two_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs two files"):
        open_data("idx:images", spec_of(1, 3, 4, base=tmp_path))
    with pytest.raises(DataError, match=r"There is no file `.*images`"):
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
    with pytest.raises(DataError, match="failed at sample 0: UnidentifiedImageError"):
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


CODE = """
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

def pairs(): return TensorDataset(torch.arange(12.).reshape(4, 3), torch.arange(4))
class Two(Dataset):
    def __len__(self): return 3
    def __getitem__(self, i): return (torch.ones(2) * i, torch.zeros(3, dtype=torch.uint8)), i
class Named(Dataset):
    def __len__(self): return 3
    def __getitem__(self, i): return {"mask": torch.ones(3), "ids": torch.tensor([i, i])}, float(i)
class Boxes(Dataset):
    def __len__(self): return 3
    def __getitem__(self, i): return torch.ones(3), {"boxes": torch.ones(2), "kinds": (i, i)}
def lists(): return [3, 4]
def broken(): return [None] * 3
class Fails(Dataset):
    def __len__(self): return 3
    def __getitem__(self, i): raise OSError("disk on fire")
def words(): return [("a", 1)] * 3
def texts(): return [(torch.ones(3), "cat")] * 3
class Stream(IterableDataset):
    def __iter__(self): return iter(())
"""


def test_a_dataset_of_the_user_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    data = open_data("mine.py:pairs[1:]", spec_of(3, base=tmp_path))
    (inputs,), target = data[0]
    assert (inputs.tolist(), int(target), len(data)) == ([3.0, 4.0, 5.0], 1, 3)  # type: ignore[attr-defined]


def test_several_inputs_come_by_position_or_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    spec = replace(spec_of(2, base=tmp_path), inputs=(InputSpec((2,)), InputSpec((3,))))
    ((inputs, targets),) = batches(open_data("mine.py:Two", spec), 3)
    assert isinstance(inputs, tuple)
    assert [tuple(tensor.shape) for tensor in inputs] == [(3, 2), (3, 3)]
    assert targets.tolist() == [0, 1, 2]
    named = replace(spec, inputs=(InputSpec((2,), "int64", "ids"), InputSpec((3,), name="mask")))
    ((by_name, targets),) = batches(open_data("mine.py:Named", named), 3)
    assert isinstance(by_name, dict)
    assert {name: tuple(tensor.shape) for name, tensor in by_name.items()} == {"ids": (3, 2), "mask": (3, 3)}
    assert targets.dtype is torch.float32
    item, _ = open_data("mine.py:Named", named)[1]
    assert item["ids"].tolist() == [1, 1]  # type: ignore[call-overload]


def test_targets_may_be_nested(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    ((_, targets),) = batches(open_data("mine.py:Boxes", spec_of(3, base=tmp_path)), 3)
    assert targets["boxes"].shape == (3, 2)
    assert [kind.tolist() for kind in targets["kinds"]] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("lists", "A sample is int, not a pair"),
        ("broken", "A sample is NoneType, not a pair"),
        ("Fails", "failed at sample 0: OSError: disk on fire"),
        ("words", "gives list as an input|gives 3 inputs|gives tuple|gives str"),
        ("texts", "A target is str|A target is list"),
        ("Two", "gives 2 inputs, but the spec has 1"),
        ("Named", r"gives inputs by the names mask, ids, but the spec's \[\[input\]\] has \(unnamed\)"),
    ),
)
def test_wrong_samples_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    with pytest.raises(DataError, match=message):
        open_data(f"mine.py:{name}", spec_of(3, base=tmp_path))[0]


def test_a_stream_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    with pytest.raises(DataError, match="returned Stream, which has no length or no items"):
        open_data("mine.py:Stream", spec_of(3, base=tmp_path))


def test_code_of_an_untrusted_spec_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    spec = replace(spec_of(3, base=tmp_path), trusted=False)
    with pytest.raises(SpecError, match=r"code outside torchvision.*--trust-spec"):
        open_data("mine.py:pairs", spec)
    assert len(open_data("mine.py:pairs[:2]", replace(spec, granted=frozenset({"mine.py:pairs[:2]"})))) == 2


def test_random_samples_are_the_same_for_a_seed_and_warned_about() -> None:
    spec = ModelSpec("torch.nn:Linear", {"in_features": 3, "out_features": 5}, (InputSpec((3,)),))
    with pytest.warns(SyntheticDataWarning, match="made up"):
        data = open_data("random:64", spec, seed=1)
    ((inputs, targets),) = batches(data, 64)
    assert inputs[0].shape == (64, 3)  # type: ignore[index]
    assert set(targets.tolist()) == {0, 1, 2, 3, 4}
    with pytest.warns(SyntheticDataWarning):
        other = open_data("random:64[10:]", spec, seed=1)
    assert torch.equal(other[0][0][0], inputs[0][10])  # type: ignore[index]


@pytest.mark.filterwarnings("ignore::prunecli.data.SyntheticDataWarning")
@pytest.mark.parametrize(("loss", "dtype"), (("mse", torch.float32), ("bce", torch.float32)))
def test_random_targets_fit_the_loss(loss: str, dtype: torch.dtype) -> None:
    spec = ModelSpec(
        "torch.nn:Linear", {"in_features": 3, "out_features": 5}, (InputSpec((3,)),), task=TaskSpec(loss)
    )
    ((_, targets),) = batches(open_data("random:8", spec), 8)
    assert (targets.shape, targets.dtype) == ((8, 5), dtype)


@pytest.mark.filterwarnings("ignore::prunecli.data.SyntheticDataWarning")
def test_random_samples_must_fit_the_model() -> None:
    spec = ModelSpec("torch.nn:Linear", {"in_features": 3, "out_features": 5}, (InputSpec((4,)),))
    with pytest.raises(DataError, match=r"do not fit the model: .*Check \[input\]"):
        open_data("random:8", spec)
    with pytest.raises(DataError, match="needs a number of samples"):
        open_data("random:many", spec)


@pytest.mark.parametrize("source", ("", "digits.npz", "npz:", "csv:a.csv", "npz", "a.py", "[:3]"))
def test_what_is_no_source_is_refused(source: str) -> None:
    with pytest.raises(DataError, match=r"is no source of samples. Write `npz:FILE#PART`"):
        open_data(source, spec_of(3))


def test_a_slice_has_a_step() -> None:
    with pytest.raises(DataError, match="cannot be 0"):
        open_data("random:3[::0]", spec_of(3))


def test_an_npz_with_pickles_is_not_unpickled(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, images=np.array([{"a": 1}], dtype=object), labels=np.array([1]))
    (tmp_path / "a.npz").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match="allow_pickle"):
        open_data("npz:a.npz", spec_of(3, base=tmp_path))
