"""Masks written beside the zeros they are of, and read back: exactly, strictly, in little memory."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunecli
from prunecli.errors import CheckpointError, OutputError
from prunecli.export.masks import from_record, holds, to_record
from prunecli.export.record import MaskedTensor, PrunedRecord
from prunecli.export.to_safetensors import save
from prunecli.graph.copying import named_tensors
from prunecli.model import build_model
from prunecli.weights.masked import with_masks
from tests.export.small_nets import CASES, SOURCE, prune

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
VALUES = (0.0, -0.0, 1.0, -2.5, 1e-7, 1e-40)  # the last but one is zero in float16, the last in bfloat16 too


@given(
    st.lists(st.tuples(st.sampled_from(VALUES), st.booleans()), max_size=70),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_masks_survive_whatever_is_zero(
    entries: list[tuple[float, bool]], dtype: torch.dtype, is_row: bool
) -> None:
    shape = (1, len(entries)) if is_row else (len(entries),)
    mask = torch.tensor([stays for _, stays in entries], dtype=torch.bool).reshape(shape)
    values = torch.tensor([value for value, _ in entries], dtype=torch.float64).reshape(shape)
    tensor = torch.where(mask, values, values * 0).to(dtype)  # some masked ones are -0.0
    record = to_record({"w": mask}, {"w": tensor})
    read = PrunedRecord.from_json(PrunedRecord(masks=record).to_json(), "x").masks
    assert read == record
    found = from_record(read, {"w": tensor})["w"]
    assert found.dtype == torch.bool
    assert torch.equal(found, mask)


def test_most_masks_are_two_numbers() -> None:
    weight = torch.randn(100, 100)
    mask = weight > 1
    assert to_record({"w": mask}, {"w": weight * mask}) == {"w": MaskedTensor(int(mask.sum()), 10_000)}
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert to_record({"w": everything}, {"w": torch.zeros(3, 3)}) == {"w": MaskedTensor(9, 9)}
    weight[0, 0], mask[0, 0] = 0.0, True
    record = to_record({"w": mask}, {"w": weight * mask})
    assert 0 < len(record["w"].kept_zeros) < 80
    assert torch.equal(from_record(record, {"w": weight * mask})["w"], mask)


def test_what_is_not_zero_has_no_mask() -> None:
    tensor = torch.tensor([1.0, 0.0])
    with pytest.raises(OutputError, match="mask of `w` cannot be written: what it masks is not zero"):
        to_record({"w": torch.tensor([False, True])}, {"w": tensor})
    with pytest.raises(OutputError, match="`w` cannot be written: what it masks"):
        to_record({"w": torch.ones(3, dtype=torch.bool)}, {"w": tensor})
    with pytest.raises(OutputError, match="`v` cannot be written: there is no such tensor"):
        to_record({"v": torch.ones(2, dtype=torch.bool)}, {"w": tensor})
    assert holds(torch.tensor([True, False]), tensor)
    assert not holds(torch.tensor([False, True]), torch.tensor([torch.nan, 1.0]))


def packed(bits: list[int], more: bytes = b"") -> str:
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes()) + more).decode()


ZEROS = torch.tensor([1.0, 0, 0, 0, 2.0, 0, 0, 0, 0, 0])  # 8 zeros
GOOD = MaskedTensor(4, 10, packed([1, 0, 0, 0, 0, 0, 0, 1]))  # 2 of them stay
BOMB = base64.b64encode(zlib.compress(b"\0" * 50_000_000)).decode()


@pytest.mark.parametrize(
    ("name", "record", "message"),
    (
        ("v", GOOD, "`x.safetensors`: metadata field `masks.v` does not fit: the file has no such tensor"),
        ("w", replace(GOOD, size=11), "it is of 11 weights, and the tensor has 10"),
        ("w", replace(GOOD, kept=11), "it keeps 11 of 10 weights, 8 are zero"),
        ("w", replace(GOOD, kept=-1), "it keeps -1 of 10 weights"),
        ("w", MaskedTensor(1, 10), "it keeps 1 of 10 weights, 8 are zero"),
        ("w", MaskedTensor(2, 10, GOOD.kept_zeros), "the numbers say that already"),
        ("w", MaskedTensor(10, 10, GOOD.kept_zeros), "the numbers say that already"),
        ("w", replace(GOOD, kept_zeros=""), "is not 1 bytes"),
        ("w", replace(GOOD, kept_zeros="!!"), "cannot be read"),
        ("w", replace(GOOD, kept_zeros="ä"), "cannot be read"),
        ("w", replace(GOOD, kept_zeros=base64.b64encode(b"abc").decode()), "cannot be read"),
        ("w", replace(GOOD, kept_zeros=packed([1] * 9)), "is not 1 bytes, a bit for each of 8"),
        ("w", replace(GOOD, kept_zeros=packed([1, 1], b"x")), "is not 1 bytes"),
        ("w", replace(GOOD, kept_zeros=BOMB), "is not 1 bytes"),
        ("w", replace(GOOD, kept_zeros=packed([1])), "1 zeros stay by their bits, 2 by the numbers"),
    ),
)
def test_what_does_not_fit_is_refused(name: str, record: MaskedTensor, message: str) -> None:
    assert from_record({"w": GOOD}, {"w": ZEROS})["w"].sum() == 4
    with pytest.raises(CheckpointError, match=message):
        from_record({name: record}, {"w": ZEROS}, "x.safetensors")


def test_bits_behind_the_last_zero_are_refused() -> None:
    record = MaskedTensor(3, 4, packed([1, 1, 0, 1]))  # 3 zeros, of which one is masked
    with pytest.raises(CheckpointError, match="by their bits"):
        from_record({"w": record}, {"w": torch.tensor([1.0, 0, 0, 0])})


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_file_gives_masks_back_also_of_tied_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SOURCE)
    pruned = prune(CASES["net"], tmp_path)
    dense = build_model(pruned.spec).to(dtype)
    masks = masks_of(dense, ("conv.weight", "up.weight"))
    with torch.no_grad():
        dense.get_parameter("up.weight")[0] = 0.0  # of which some are kept ones
    model = with_masks(dense, masks)
    record = replace(pruned.record, attributes={}, masks=to_record(masks, named_tensors(model)))
    save(model, tmp_path / "masked.safetensors", record)
    loaded = prunecli.load(tmp_path / "masked.safetensors", trust_spec=True)
    assert loaded.tied.weight is loaded.up.weight
    assert torch.equal(loaded.tied.weight, model.get_parameter("up.weight"))
    found = from_record(record.masks, named_tensors(loaded))
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def masks_of(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return masks drawn at random."""
    generator = torch.Generator().manual_seed(0)
    parameters = dict(model.named_parameters())
    return {name: torch.rand(parameters[name].shape, generator=generator) < 0.3 for name in names}


def test_a_file_without_masks_says_nothing_of_them() -> None:
    assert '"masks"' not in PrunedRecord().to_json()
    assert PrunedRecord.from_json(PrunedRecord().to_json(), "x").masks == {}
