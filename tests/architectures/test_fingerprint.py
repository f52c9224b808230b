"""Digests of names and shapes: what they tell apart, and what they do not look at."""

from __future__ import annotations

import pytest

from prunecli.architectures.fingerprint import (
    Argument,
    Fingerprint,
    Place,
    digest_of_names,
    digest_of_shapes,
    take_fingerprint,
)

SHAPES = {"conv.weight": (8, 3, 3, 3), "bn.num_batches_tracked": (), "fc.weight": (10, 8), "fc.bias": (10,)}
CLASSES = Argument("num_classes", 10, (Place("fc.bias", 0), Place("fc.weight", 0)))


def test_a_line_holds_everything() -> None:
    channels = Argument("in_chans", 3, (Place("conv.weight", 1, 2, 4),))
    whole = take_fingerprint("torchvision:net", SHAPES, [CLASSES, channels], {"aux_loss": True})
    assert Fingerprint.from_line(whole.to_line()) == whole
    bare = take_fingerprint("torchvision:net", SHAPES)
    assert bare.trunk is None
    assert Fingerprint.from_line(bare.to_line()) == bare


def test_order_and_counters_do_not_count() -> None:
    other = dict(reversed(SHAPES.items()))
    del other["bn.num_batches_tracked"]
    assert digest_of_names(other) == digest_of_names(SHAPES)
    assert digest_of_shapes(other) == digest_of_shapes(SHAPES)


@pytest.mark.parametrize(
    "change", ({"fc.bias": (11,)}, {"conv.weight": (8, 3, 3, 3, 1)}, {"more": (1,)}), ids=repr
)
def test_every_name_and_length_counts(change: dict[str, tuple[int, ...]]) -> None:
    assert digest_of_shapes(SHAPES | change) != digest_of_shapes(SHAPES)


def test_a_free_length_does_not_count() -> None:
    more = SHAPES | {"fc.weight": (12, 8), "fc.bias": (12,)}
    assert digest_of_shapes(more, [CLASSES]) == digest_of_shapes(SHAPES, [CLASSES])
    assert CLASSES.value(more) == 12
    assert CLASSES.value(more | {"fc.bias": (11,)}) is None


def test_a_place_solves_for_its_argument() -> None:
    place = Place("box", 0, factor=4, offset=4)
    assert place.value({"box": (44,)}) == 10
    assert place.value({"box": (45,)}) is None
    assert place.value({"box": (4,)}) is None
    assert Place.parse(str(place)) == place
