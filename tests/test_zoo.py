"""Networks of torchvision, of every family: groups found, pruned to half, the result proven.

The measuring is `benchmarks/zoo.py`; pictures are smaller here where the network allows it.
"""

from __future__ import annotations

import pytest

from benchmarks.networks import architectures, family
from benchmarks.zoo import examine
from prunecli.plan import Scope

SMALL = {
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "mnasnet0_5": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "vit_b_32": 64,
}
"""Name -> height and width of the pictures."""

LEAST_SHARE = {"shufflenetv2": 0.98}
"""Family -> how much of the parameters is in groups at least; other networks have all.

Shuffling ties all channels of some ShuffleNet stages into a single unit, which cannot go.
"""
ALL_BUT_BIASES = 0.999
"""The bias of the classifier belongs to its outputs, which are never cut."""


@pytest.mark.parametrize("name", SMALL)
def test_prunes_to_half(name: str) -> None:
    check(name, SMALL[name], scopes=(Scope.LAYER,))


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_prunes_every_architecture_to_half(name: str) -> None:
    check(name)


def check(name: str, size: int | None = None, scopes: tuple[Scope, ...] = tuple(Scope)) -> None:
    """Assert that one network prunes, and that enough of it can be pruned."""
    outcome = examine(name, size=size, scopes=scopes)
    assert outcome.failure == ""
    assert outcome.share >= LEAST_SHARE.get(family(name), ALL_BUT_BIASES)
    assert all(cut.params < outcome.params for cut in outcome.cuts)
    assert all(cut.structure_dtype == "float64" for cut in outcome.cuts)
