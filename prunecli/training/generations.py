"""Nets trained one after another: when one is done, what each came to, and what all of them cost to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.graph.structure import Kept, Structure
from prunecli.strict_json import Json
from prunecli.training.complexity import Cost, cost_of, main_path, training_complexity


@dataclass(frozen=True)
class Generation:
    """One net that was trained, as it stood at its end."""

    name: str
    number: int
    """How often it was cut."""
    epochs: int
    widths: Mapping[str, int]
    density: Mapping[str, float]
    """Layer -> share of its activations that are not zero, in its last epoch."""
    total_density: float | None
    slope: float | None
    """By how much the total rose per epoch; None for a single epoch."""
    cost: Cost
    main_path: Cost
    """Without shortcuts, linear layers and normalisations, as the paper counts."""


def close(
    structure: Structure,
    kept: Kept,
    name: str,
    number: int,
    totals: Sequence[float],
    density: Mapping[str, float],
) -> Generation:
    """Return what a net came to.

    Args:
        structure: that of the dense net.
        kept: its units.
        name: what the phase was called.
        number: how often it was cut.
        totals: the total density after each of its epochs.
        density: that of each layer in its last epoch.
    """
    return Generation(
        name=name,
        number=number,
        epochs=len(totals),
        widths={group.name: int(kept[group.name].sum()) for group in structure.groups},
        density=dict(density),
        total_density=totals[-1] if totals else None,
        slope=slope_of(totals) if len(totals) > 1 else None,
        cost=cost_of(structure, kept),
        main_path=cost_of(main_path(structure), kept),
    )


def has_settled(totals: Sequence[float], rho: float, patience: int, least: int) -> bool:
    """Return whether the total density changes no more: the paper's pruning criterion.

    >>> has_settled([0.5, 0.4, 0.3996], rho=0.001, patience=1, least=2)
    True
    """
    changes = [abs(after - before) for before, after in zip(totals, totals[1:], strict=False)]
    return len(totals) >= least and len(changes) >= patience and max(changes[-patience:]) < rho


def slope_of(totals: Sequence[float]) -> float:
    """Return the least-squares slope of the total density per epoch; of two epochs at least.

    >>> round(slope_of([0.5, 0.4, 0.3]), 6)
    -0.1
    """
    epochs = np.arange(len(totals)) - (len(totals) - 1) / 2
    return float(epochs @ np.asarray(totals) / (epochs @ epochs))


def figures(nets: Sequence[Generation], structure: Structure, epochs: int) -> dict[str, Json]:
    """Return what a report says of all nets; complexities are in epochs of the dense one.

    Args:
        nets: every one that was trained, the final one last.
        structure: that of the dense net.
        epochs: how long the dense net would be trained instead.
    """
    counts = {"": [net.cost for net in nets], "main_path_": [net.main_path for net in nets]}
    dense = {"": cost_of(structure, {}), "main_path_": cost_of(main_path(structure), {})}
    found: dict[str, Json] = {"final_generation": nets[-1].number}
    told: list[dict[str, Json]] = [
        {
            "name": net.name,
            "number": net.number,
            "epochs": net.epochs,
            "total_density": net.total_density,
            "density_slope": net.slope,
            "widths": dict(net.widths),
            "density": dict(net.density),
        }
        for net in nets
    ]
    for count, costs in counts.items():
        if dense[count].params == 0:  # a net without convolutions has no main path
            continue
        cuts = [cost.times_smaller(dense[count]) for cost in costs]
        for each, cut in zip(told, cuts, strict=True):
            each |= {f"{count}params_reduction": cut.params, f"{count}macs_reduction": cut.macs}
        lengths = [net.epochs for net in nets]
        complexity = training_complexity(zip(lengths, (cut.macs for cut in cuts), strict=True))
        memory = training_complexity(zip(lengths, (cut.params for cut in cuts), strict=True))
        found |= {
            f"{count}params_reduction": cuts[-1].params,
            f"{count}macs_reduction": cuts[-1].macs,
            f"{count}training_complexity": complexity,
            f"{count}training_complexity_share": complexity / epochs,
            f"{count}training_memory_complexity": memory,
        }
    return {**found, "generations": told}
