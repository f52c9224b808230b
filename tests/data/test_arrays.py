"""Arrays that have the names of the inputs: texts as numbers, with their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prunecli.data import batches, open_data
from prunecli.errors import DataError
from prunecli.spec import InputSpec, ModelSpec

IDS = np.arange(20).reshape(4, 5)
MASK = np.ones((4, 5), dtype=bool)
LABELS = np.arange(4)
INPUTS = (InputSpec((5,), "int64", "input_ids", 20), InputSpec((5,), "int64", "attention_mask"))


def spec_in(folder: Path, inputs: tuple[InputSpec, ...] = INPUTS) -> ModelSpec:
    return ModelSpec("torchvision:resnet18", inputs=inputs, base=folder)


def test_arrays_are_matched_to_inputs_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", labels=LABELS, attention_mask=MASK, input_ids=IDS)
    data = open_data("npz:text.npz[1:]", spec_in(tmp_path))
    ((inputs, targets),) = batches(data, 3)
    assert isinstance(inputs, dict)
    assert inputs["input_ids"].equal(torch.from_numpy(IDS[1:]))
    assert inputs["attention_mask"].dtype == torch.int64
    assert targets.tolist() == [1, 2, 3]


def test_a_part_is_in_front_of_each_name_and_labels_may_be_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", train_input_ids=IDS, train_attention_mask=MASK)
    data = open_data("npz:text.npz#train", spec_in(tmp_path))
    assert data[2][1] is None
    assert len(data) == 4


def test_images_still_go_to_an_only_input_that_has_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=LABELS)
    data = open_data("npz:pictures.npz", spec_in(tmp_path, (InputSpec((3, 8, 8), name="pixel_values"),)))
    inputs, _ = data.batch([0])
    assert isinstance(inputs, dict)
    assert inputs["pixel_values"].shape == (1, 3, 8, 8)


def test_an_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", input_ids=IDS)
    with pytest.raises(DataError, match="no array `attention_mask`, only input_ids. Arrays have the names"):
        open_data("npz:text.npz", spec_in(tmp_path))


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", input_ids=IDS, attention_mask=MASK[1:])
    with pytest.raises(DataError, match="has 4 input_ids, but 3 attention_mask"):
        open_data("npz:text.npz", spec_in(tmp_path))


def test_texts_of_another_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", input_ids=IDS[:, :3], attention_mask=MASK)
    with pytest.raises(DataError, match=r"samples of shape \[3\], but the spec's input is \[5\]"):
        open_data("npz:text.npz", spec_in(tmp_path)).batch([0])
