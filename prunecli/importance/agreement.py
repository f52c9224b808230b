"""Scores of two methods -> how far they agree, per layer and over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.errors import InputError
from prunecli.importance.registry import Granularity, find_method
from prunecli.importance.scores import Scores

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Coefficients:
    """Three correlation coefficients, each from -1 to 1; None where they are not defined."""

    pearson: float | None
    spearman: float | None
    kendall: float | None


@dataclass(frozen=True)
class Agreement:
    """How far the scores of a method follow those of another (Molchanov et al., 2019, tables 1 and 2)."""

    method: str
    against: str
    per_layer: Coefficients
    """Unweighted means over the groups."""
    all_layers: Coefficients
    """Over the units of all groups together."""
    layers: int
    """How many groups there are,"""
    constant: tuple[str, ...]
    """and which of them are left out of the means, because one method scores all their units alike."""
    units: int


def agreement(scores: Scores, against: Scores, label: str | None = None) -> Agreement:
    """Correlate the scores of the same units by two methods.

    Signed scores (`obd`) are squared first: a unit whose removal lowers the loss matters as one whose
    removal raises it. Ties have average ranks (Spearman) and count as neither (Kendall's tau-b).

    Args:
        scores: The method that is judged.
        against: What it is judged by.
        label: What to call that; its method's name by default.

    Raises:
        InputError: The scores are of different units.
    """
    shapes = [{name: len(values) for name, values in each.by_group.items()} for each in (scores, against)]
    if shapes[0] != shapes[1]:
        raise InputError(f"`{scores.method}` and `{against.method}` scored different units: score again.")
    pairs = {name: (_values(scores, name), _values(against, name)) for name in scores.by_group}
    varied = {name: pair for name, pair in pairs.items() if all(np.ptp(values) > 0 for values in pair)}
    each = [_coefficients(*pair) for pair in varied.values()]
    together = [np.concatenate([pair[side] for pair in pairs.values()]) for side in (0, 1)]
    return Agreement(
        scores.method,
        label or against.method,
        _mean(each),
        _coefficients(together[0], together[1]),
        len(pairs),
        tuple(name for name in pairs if name not in varied),
        sum(len(values) for values in scores.by_group.values()),
    )


def _values(scores: Scores, group: str) -> _Values:
    values: _Values = np.asarray(scores.by_group[group], dtype=np.float64)
    return values**2 if find_method(scores.method, Granularity(scores.about.granularity)).signed else values


def _coefficients(left: _Values, right: _Values) -> Coefficients:
    from scipy.stats import kendalltau, pearsonr, spearmanr  # slow to import, and only needed here

    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return Coefficients(None, None, None)
    return Coefficients(
        _number(pearsonr(left, right)), _number(spearmanr(left, right)), _number(kendalltau(left, right))
    )


def _number(result: Any) -> float:
    return float(result.statistic)


def _mean(each: Sequence[Coefficients]) -> Coefficients:
    return Coefficients(
        _average([found.pearson for found in each]),
        _average([found.spearman for found in each]),
        _average([found.kendall for found in each]),
    )


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
