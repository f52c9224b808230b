"""How `prunecli inspect` says what is frozen."""

from __future__ import annotations

from prunecli.cli.inspect import closing
from prunecli.pipeline.inspect import Frozen, Inspection


def told(*frozen: Frozen) -> list[str]:
    """Return the lines about these."""
    found = Inspection("net.pt", "", "", "", (), 10, 10, 10, 10, (), (), frozen, (), ())
    return [line for line in closing(found) if line.startswith("frozen: ")]


def test_layers_that_are_frozen_for_one_reason_share_a_line() -> None:
    frozen = [Frozen(f"layers.{i}.lstm", 8, "is read by `lstm`", f"layers.{i}", "lstm") for i in range(5)]
    assert told(*frozen, Frozen("head", 10, "is an output of the network", "", "")) == [
        "frozen: each of layers.0.lstm, layers.1.lstm, layers.2.lstm and 2 more (40 units together) "
        "is read by `lstm` (lstm)",
        "frozen: head (10 units) is an output of the network",
    ]


def test_one_layer_keeps_its_place() -> None:
    assert told(Frozen("embed", 8, "is looked up", "encoder", "gather")) == [
        "frozen: embed (8 units) is looked up (gather at encoder)"
    ]


def test_few_layers_are_all_named() -> None:
    frozen = (Frozen(name, 4, "goes", "same", op) for name, op in (("a", "add"), ("b", "mul")))
    assert told(*frozen) == ["frozen: each of a, b (8 units together) goes (same)"]
