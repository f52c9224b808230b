"""Masks over weights <-> what a file says of them: the zeros of a tensor are its mask, but for kept zeros.

Nearly always, what is zero is masked, so that two numbers tell the whole mask. Where zeros stay that are
not masked (an untrained bias of a kernel, a weight that happens to be 0), a bit per zero says which.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunecli.errors import CheckpointError, OutputError
from prunecli.export.record import MaskedTensor


def to_record(masks: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, MaskedTensor]:
    """Return what a file that holds the tensors says of their masks.

    Args:
        masks: Parameter -> a bool per weight, True = keep.
        tensors: What the file holds, by name, as it holds it: a cast may have made more zeros.

    Raises:
        OutputError: What is masked is not zero, or the file has no such tensor.
    """
    return {name: _record(name, mask, tensors.get(name)) for name, mask in masks.items()}


def from_record(
    record: Mapping[str, MaskedTensor], tensors: Mapping[str, Tensor], where: str = "the file"
) -> dict[str, Tensor]:
    """Return the masks of the tensors that a file holds: a bool per weight, True = keep, on the CPU.

    Args:
        record: What the file says of them.
        tensors: What it holds, by name.
        where: The file, for messages.

    Raises:
        CheckpointError: What it says does not fit the tensors.
    """
    return {name: _mask(name, each, tensors.get(name), where) for name, each in record.items()}


def holds(mask: Tensor, tensor: Tensor) -> bool:
    """Return whether a tensor has the shape of a mask, and is zero wherever that masks."""
    return mask.shape == tensor.shape and not bool(tensor.detach()[~mask.to(tensor.device)].any())


def _record(name: str, mask: Tensor, tensor: Tensor | None) -> MaskedTensor:
    if tensor is None or not holds(mask, tensor):
        raise OutputError(
            f"The mask of `{name}` cannot be written: "
            + ("there is no such tensor." if tensor is None else "what it masks is not zero.")
        )
    on_zeros = mask.cpu()[tensor.detach().cpu() == 0]
    kept, size = int(mask.sum()), mask.numel()
    if not on_zeros.any() or kept == size:
        return MaskedTensor(kept, size)
    packed = zlib.compress(np.packbits(on_zeros.numpy()).tobytes(), 9)
    return MaskedTensor(kept, size, base64.b64encode(packed).decode())


def _mask(name: str, record: MaskedTensor, tensor: Tensor | None, where: str) -> Tensor:
    if tensor is None:
        raise _refused(name, where, "the file has no such tensor")
    if record.size != tensor.numel():
        raise _refused(
            name, where, f"it is of {record.size:,} weights, and the tensor has {tensor.numel():,}"
        )
    zeros = tensor.detach().cpu() == 0
    kept_zeros = int(zeros.sum()) - (record.size - record.kept)
    if record.kept < 0 or record.kept > record.size or kept_zeros < 0:
        raise _refused(
            name, where, f"it keeps {record.kept:,} of {record.size:,} weights, {int(zeros.sum()):,} are zero"
        )
    mask = ~zeros
    if kept_zeros == 0 or record.kept == record.size:
        if record.kept_zeros:
            raise _refused(name, where, "it says which zeros stay, and the numbers say that already")
        return mask if kept_zeros == 0 else torch.ones_like(mask)
    mask[zeros] = _unpacked(name, record.kept_zeros, int(zeros.sum()), kept_zeros, where)
    return mask


def _unpacked(name: str, text: str, zeros: int, kept: int, where: str) -> Tensor:
    """Return a bool per zero of the tensor, True where it stays; never more memory than these take."""
    size = -(-zeros // 8)
    reader = zlib.decompressobj()
    try:
        packed = reader.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise _refused(name, where, "which zeros stay cannot be read") from None
    if len(packed) != size or not reader.eof or reader.unused_data:
        raise _refused(name, where, f"which zeros stay is not {size:,} bytes, a bit for each of {zeros:,}")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if bits[zeros:].any() or int(bits.sum()) != kept:
        raise _refused(name, where, f"{int(bits.sum()):,} zeros stay by their bits, {kept:,} by the numbers")
    return torch.from_numpy(bits[:zeros].astype(np.bool_))


def _refused(name: str, where: str, reason: str) -> CheckpointError:
    return CheckpointError(f"`{where}`: metadata field `masks.{name}` does not fit: {reason}.")
