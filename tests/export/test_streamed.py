"""What is streamed is what the library writes, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from prunecli.errors import OutputError
from prunecli.export.files import write_file
from prunecli.export.streamed import StreamedTensors
from prunecli.on_demand import OnDemand

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.float64, torch.int64, torch.uint64,
)  # fmt: skip
METADATA = {"prunecli": '{"a":"é\\u001f\\n\U0001f600","b":"\\\\"}\x1f\x7f\t'}


def tensors() -> dict[str, torch.Tensor]:
    """Return tensors of all dtypes, scalars and empty ones among them, in no order."""
    found = {}
    for number, dtype in enumerate(DTYPES):
        values = torch.arange(6).reshape(2, 3) % 2
        found[f'{"zab"[number % 3]}.{dtype} "é"'] = values.to(dtype, copy=True)
        found[f"scalar {dtype}"] = values[0, 1].clone().to(dtype)
    return {**found, "empty": torch.empty(0, 3), "a": torch.randn(5)}


@pytest.mark.parametrize("count", (1, 4, 7, 28))
def test_the_bytes_are_those_of_the_library(count: int) -> None:
    some = dict(list(tensors().items())[-count:])
    expected = safetensors.torch.save(some, METADATA)
    on_demand = {name: OnDemand(each.shape, each.dtype, each.clone) for name, each in some.items()}
    for content in (StreamedTensors(some, METADATA), StreamedTensors(on_demand, METADATA)):
        assert b"".join(content) == expected
        assert len(content) == len(expected)
        assert content.sha256 == hashlib.sha256(expected).hexdigest()


def test_it_is_written_like_any_content(tmp_path: Path) -> None:
    content = StreamedTensors(tensors(), METADATA)
    write_file(tmp_path / "a.safetensors", content)
    assert (tmp_path / "a.safetensors").read_bytes() == safetensors.torch.save(
        tensors() | {"a": content.tensors["a"]}, METADATA
    )


def test_tensors_that_change_meanwhile_are_not_written(tmp_path: Path) -> None:
    content = StreamedTensors({"a": OnDemand((2,), torch.float32, lambda: torch.rand(2))}, {})
    with pytest.raises(OutputError, match="changed while it was read. Nothing was written"):
        write_file(tmp_path / "a.safetensors", content)
    assert not list(tmp_path.iterdir())
