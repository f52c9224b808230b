"""How many weights masks leave in each tensor -> MaskFacts, and how they are written for people. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunecli.report.numbers import human, percent
from prunecli.report.values import MaskedLayer, MaskFacts, ModelFacts, Report


def mask_facts(
    counts: Mapping[str, tuple[int, int]],
    model: ModelFacts,
    *,
    ratio: float | None = None,
    base: str = "whole",
    pattern: str | None = None,
    semi_structured: str | None = None,
) -> MaskFacts:
    """Say what masks leave of a model.

    Args:
        counts: Parameter, by its canonical name -> how many of its weights are left, and how many it has.
        model: The facts of the model that has them: its parameters, and the MACs of its layers.
        ratio: The compression that was asked for.
        base: Whose size it divides: `whole`, all parameters, or `prunable`, those of `counts`.
        pattern: So many of each few neighbours stay, as in `2:4`.
        semi_structured: What became of the check that kernels take the weights.

    >>> from prunecli.report.values import LayerFacts
    >>> model = ModelFacts((LayerFacts("a", "Linear", 4, 20, 16), LayerFacts("b", "Linear", 2, 10, 8)), 120)
    >>> found = mask_facts({"a.weight": (4, 16)}, model, ratio=2)
    >>> found.effective_ratio, found.compression_error, found.macs
    (1.6666666666666667, 0.16666666666666663, 12)
    """
    layers = _by_layer(counts, model)
    size, gone = sum(one.size for one in layers.values()), sum(one.size - one.kept for one in layers.values())
    n = size if base == "prunable" else model.params
    effective = n / (n - gone) if n > gone else None
    return MaskFacts(
        layers=tuple(layers.values()),
        ratio=ratio,
        effective_ratio=effective,
        compression_error=(ratio - effective) / ratio if ratio and effective else None,
        base=base,
        collapsed=tuple(one.name for one in layers.values() if one.size and not one.kept),
        macs=sum(
            _left(facts.macs, layers[facts.name]) if facts.name in layers else facts.macs
            for facts in model.layers
        ),
        pattern=pattern,
        semi_structured=semi_structured,
    )


def _by_layer(counts: Mapping[str, tuple[int, int]], model: ModelFacts) -> dict[str, MaskedLayer]:
    """Sum up the weights of each layer, in the order of the model; those that it does not list come last."""
    layers: dict[str, MaskedLayer] = {}
    for parameter, (kept, size) in counts.items():
        name = parameter.rpartition(".")[0]
        so_far = layers.get(name, MaskedLayer(name, 0, 0))  # attention has several weights
        layers[name] = MaskedLayer(name, so_far.kept + kept, so_far.size + size)
    order = [*(facts.name for facts in model.layers if facts.name in layers), *layers]
    return {name: layers[name] for name in dict.fromkeys(order)}


def _left(macs: int, layer: MaskedLayer) -> int:
    """Return the MACs with the weights that are left: each weight of a layer takes as many."""
    return round(macs * layer.kept / layer.size) if layer.size else macs


def mask_lines(report: Report) -> Iterator[tuple[str, str]]:
    """Yield labels and texts of what masks leave; nothing where there are none.

    >>> from prunecli.report.values import Change, Totals
    >>> facts = MaskFacts((MaskedLayer("a", 13471, 431080),), 32.0, 32.0006, -2e-05, "prunable", (), 99)
    >>> none = Change(0, 0)
    >>> report = Report("x", (), Totals(none, Change(1000, 1000), none), masks=facts)
    >>> for label, text in mask_lines(report):
    ...     print(f"{label}: {text}")
    weights: 431,080 -> 13,471 (of the prunable weights: r 32.0, r_e 32.0, error 0.0 %)
    : 99 of 1.00K MACs are with weights that are left (9.9%)
    collapsed: none
    """
    facts = report.masks
    if facts is None:
        return
    yield "weights", weights_text(facts)
    macs = report.totals.macs.after
    if macs:
        yield (
            "",
            (
                f"{human(facts.macs)} of {human(macs)} MACs are with weights that are left "
                f"({percent(facts.macs / macs)})"
            ),
        )
    if facts.pattern:
        yield "pattern", facts.pattern + (f"; {facts.semi_structured}" if facts.semi_structured else "")
    yield "collapsed", ", ".join(name or "(root)" for name in facts.collapsed) or "none"


def weights_text(facts: MaskFacts) -> str:
    """Write how many weights there were and are, and the compression.

    >>> weights_text(MaskFacts((MaskedLayer("a", 0, 9),), None, None, None, "whole", ("a",), 0))
    '9 -> 0 (of all parameters: r_e without end)'
    """
    effective = "without end" if facts.effective_ratio is None else f"{facts.effective_ratio:.1f}"
    parts = [f"r_e {effective}"]
    if facts.ratio is not None:
        parts.insert(0, f"r {facts.ratio:.1f}")
    if facts.compression_error is not None:
        error = round(100 * facts.compression_error, 1) + 0.0  # never minus zero
        parts.append(f"error {error:.1f} %")
    base = "the prunable weights" if facts.base == "prunable" else "all parameters"
    return f"{facts.size:,} -> {facts.kept:,} (of {base}: {', '.join(parts)})"


def is_cut(report: Report) -> bool:
    """Return whether units left too, so that their numbers are worth a column."""
    changes = [report.totals.units, *(layer.units for layer in report.layers)]
    return any(change is not None and change.before != change.after for change in changes)


def weights_of(report: Report) -> dict[str, MaskedLayer]:
    """Return what is left of each layer that has masks, by its name."""
    return {layer.name: layer for layer in report.masks.layers} if report.masks is not None else {}
