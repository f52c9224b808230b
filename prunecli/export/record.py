"""What a pruned file says of itself beside its tensors: one JSON text, strictly read. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from prunecli.errors import CheckpointError
from prunecli.strict_json import FieldError, Json, VersionError, from_plain, read_versioned, to_plain

METADATA_KEY = "prunecli"
FORMAT_VERSION = 1

Size: TypeAlias = "int | float | tuple[int, ...] | list[int]"
"""What an attribute that follows a width may hold."""


@dataclass(frozen=True)
class MaskedTensor:
    """Which weights of a tensor are masked: those that are zero, but for kept zeros. See `masks.py`."""

    kept: int
    """How many weights are not masked."""
    size: int
    """How many there are."""
    kept_zeros: str = ""
    """A bit for each zero of the tensor, in order, 1 = kept: packed, deflated, base64. Empty: none is, or all
    are, as the numbers say."""


@dataclass(frozen=True)
class PrunedRecord:
    """How to rebuild a pruned model from its tensors, and where it came from."""

    spec: Mapping[str, Json] | None = None
    """How to build the dense model, as `spec.to_json_dict` writes it; None where only code knows."""
    attributes: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """Module -> attribute -> the size that replaces the dense one. See `write_sizes`."""
    rewritten: Mapping[str, str] = field(default_factory=dict)
    """Module -> class name of the size-explicit twin that takes its place."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of tied tensors -> the name in the file. Filled in by `save`."""
    non_persistent: tuple[str, ...] = ()
    """Tensors of the file that a state dict would leave out. Filled in by `save`."""
    widened: Mapping[str, Literal["float32", "float64"]] = field(default_factory=dict)
    """Tensors that the model holds in more bits than the file -> in what precision. Filled in by `save`."""
    masks: Mapping[str, MaskedTensor] = field(default_factory=dict)
    """Tensors whose weights were pruned one by one -> which of them."""
    plan: Json = None
    """What was kept, as the plan's own JSON."""
    method: Mapping[str, Json] = field(default_factory=dict)
    """What the units were ranked by: method, sample, seed."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Files that this one was made from: name (no folder) -> sha256."""
    parity: Json = None
    """Result of the proof, or None where it was skipped."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that wrote the file -> version."""

    def to_json(self) -> str:
        """Return the text that is stored; equal records give equal texts."""
        plain = {"format": FORMAT_VERSION, **to_plain(self)}
        for name in ("masks", "widened"):
            if not plain[name]:  # as before there were any
                del plain[name]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> PrunedRecord:
        """Read what `to_json` wrote.

        Args:
            text: The JSON.
            where: The file it comes from, for messages.

        Raises:
            CheckpointError: when it is no such JSON, or was written by a newer prunecli.
        """
        try:
            what = f"`{where}`: the `{METADATA_KEY}` metadata"
            record = from_plain(cls, read_versioned(text, FORMAT_VERSION, what, key="format"))
            _check_sizes(record.attributes)
        except VersionError as error:
            raise CheckpointError(str(error)) from None
        except (FieldError, RecursionError) as error:
            raise CheckpointError(f"`{where}`: metadata field {error}.") from None
        return record


def write_sizes(attributes: Mapping[str, Mapping[str, Size]]) -> dict[str, dict[str, Json]]:
    """Turn attribute values into JSON that still tells a tuple from a list.

    >>> write_sizes({"norm": {"normalized_shape": (45,)}, "conv": {"out_channels": 45}})
    {'norm': {'normalized_shape': {'tuple': [45]}}, 'conv': {'out_channels': 45}}
    """
    return {
        module: {
            name: {"tuple": list(value)} if isinstance(value, tuple) else value
            for name, value in sizes.items()
        }
        for module, sizes in attributes.items()
    }


def _check_sizes(attributes: Mapping[str, Mapping[str, Any]]) -> None:
    for module, sizes in attributes.items():
        for name, value in sizes.items():
            if not (_is_size(value) and name.isidentifier() and not name.startswith("__")):
                raise FieldError(f"`attributes.{module}.{name}`: found {value!r:.60}, expected a size")


def _is_size(value: Json) -> bool:
    """Say whether it is a number, a list of them, or what `write_sizes` makes of a tuple."""
    if isinstance(value, dict):
        return set(value) == {"tuple"} and isinstance(value["tuple"], list) and _is_size(value["tuple"])
    return all(type(item) in (int, float) for item in (value if isinstance(value, list) else [value]))
