from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prunecli.errors import CheckpointError
from prunecli.export.record import FORMAT_VERSION, PrunedRecord, write_sizes

RECORD = PrunedRecord(
    spec={"model": {"factory": "torchvision:resnet18", "args": {}}},
    attributes=write_sizes({"norm": {"normalized_shape": (45,), "eps": 1e-5}, "conv": {"out_channels": 45}}),
    rewritten={"attention": "SizedMultiheadAttention"},
    aliases={"head.weight": "embedding.weight"},
    non_persistent=("mask",),
    plan={"keep": {"conv": [0, 2]}},
    method={"name": "taylor-fo", "samples": 128},
    parents={"dense.pt": "ab" * 32},
    parity={"structure": 1e-15},
    versions={"prunecli": "0.1.0"},
)


@pytest.mark.parametrize("record", (RECORD, PrunedRecord()))
def test_a_record_survives_the_round_trip(record: PrunedRecord) -> None:
    assert PrunedRecord.from_json(record.to_json(), "x") == record


def test_equal_records_give_equal_texts() -> None:
    turned = replace(RECORD, attributes=dict(reversed(RECORD.attributes.items())))
    assert turned.to_json() == RECORD.to_json()


def with_fields(**fields: object) -> str:
    return json.dumps(json.loads(RECORD.to_json()) | fields)


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("{", "`x.safetensors`: the `prunecli` metadata is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no valid `format` number"),
        ("{}", "no valid `format` number"),
        (with_fields(format="1"), "no valid `format` number"),
        (
            with_fields(format=FORMAT_VERSION + 1),
            r"has format 2, but this prunecli reads up to 1. Update prunecli",
        ),
        (with_fields(aliases=[]), r"metadata field `aliases`: found \[\], expected an object"),
        (with_fields(extra=1), "`extra`: unknown field"),
        (with_fields(non_persistent=["a", 1]), r"`non_persistent\[1\]`: found 1, expected a text"),
        (with_fields(attributes={"a": {"b": "c"}}), "`attributes.a.b`: found 'c', expected a size"),
        (with_fields(attributes={"a": {"b": True}}), "`attributes.a.b`: found True, expected a size"),
        (with_fields(attributes={"a": {"b": {"tuple": 3}}}), "expected a size"),
        (with_fields(attributes={"a": {"__class__": 3}}), "expected a size"),
    ),
)
def test_a_malformed_record_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        PrunedRecord.from_json(text, "x.safetensors")
