"""Sources of samples: each form, each slice, each way to be wrong."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunecli.data import SyntheticDataWarning, batches, open_data
from prunecli.errors import DataError, SpecError
from prunecli.spec import DataSpec, InputSpec, Metric, ModelSpec, Normalize, Target, TaskSpec
from tests.data.small_data import IMAGES, LABELS, spec_of


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


@pytest.mark.parametrize("part", ("", "train"))
def test_samples_may_have_no_labels(tmp_path: Path, part: str) -> None:
    npz(tmp_path, **{f"{part}_images" if part else "images": IMAGES})
    data = open_data(f"npz:a.npz#{part}" if part else "npz:a.npz", spec_of(2, 3, 4, base=tmp_path))
    found = list(batches(data, 4))
    assert [len(inputs[0]) for inputs, _ in found] == [4, 2]  # type: ignore[index]
    assert all(targets is None for _, targets in found)
    assert data[0][1] is None


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


CODE = """
import torch
from torch.utils.data import Dataset, TensorDataset

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
def number(): return 5
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


def test_a_dataset_of_the_user_may_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef plain(): return list(torch.arange(12.).reshape(4, 3))\n"
    )
    ((inputs, targets),) = batches(open_data("mine.py:plain", spec_of(3, base=tmp_path)), 4)
    assert inputs[0].tolist()[1] == [3.0, 4.0, 5.0]  # type: ignore[index]
    assert targets is None


@pytest.mark.parametrize("has_labels", (True, False))
def test_the_target_may_be_the_input_as_the_model_gets_it(tmp_path: Path, has_labels: bool) -> None:
    npz(tmp_path, images=IMAGES, **({"labels": LABELS} if has_labels else {}))
    spec = replace(
        spec_of(2, 3, 4, base=tmp_path),
        data=DataSpec(normalize=Normalize((0.5,), (0.25,))),
        task=TaskSpec("mse", Metric.LOSS, Target.INPUT),
    )
    data = open_data("npz:a.npz", spec)
    ((inputs, targets),) = batches(data, 6, dtype=torch.float64)
    assert torch.equal(inputs[0], targets)  # type: ignore[index]
    assert targets.dtype is torch.float64
    (flipped,), target = data.batch([3, 1], lambda images: images.flip(-1))
    assert torch.equal(flipped, target)  # type: ignore[arg-type]
    assert torch.allclose(target, (torch.from_numpy(IMAGES[[3, 1]]).flip(-1) / 255 - 0.5) / 0.25)
    named = replace(spec, inputs=(InputSpec((2, 3, 4), name="x"), InputSpec((2, 3, 4), name="y")))
    (tmp_path / "mine.py").write_text(
        "import torch\ndef both(): return [({'y': torch.ones(2, 3, 4), 'x': torch.zeros(2, 3, 4)}, 1)] * 3\n"
    )
    by_name, target = open_data("mine.py:both", named).batch([0])
    assert target is by_name["x"]  # type: ignore[call-overload]


def test_a_number_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    with pytest.raises(DataError, match="returned int, which has no length or no items"):
        open_data("mine.py:number", spec_of(3, base=tmp_path))


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
    with pytest.raises(DataError, match="needs a number of samples"):
        open_data(f"random:{10**20}", spec)


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
