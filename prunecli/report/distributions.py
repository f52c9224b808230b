"""Scores of units -> how they are spread, layer by layer, before and after units left. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Box:
    """A handful of numbers as their least, quartiles and greatest."""

    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float


@dataclass(frozen=True)
class GroupScores:
    """How the scores of one group are spread.

    Ranks run over all units of the network, from 1 (the least important) up; equal scores share the mean of
    their ranks, as in the box plots of Molchanov et al. (2017, figure 3).
    """

    name: str
    units: int
    kept: int
    scores: Box
    ranks: Box
    kept_scores: Box | None
    """Of the units that stay; None where none does."""
    kept_ranks: Box | None


@dataclass(frozen=True)
class ScoreFacts:
    """What the units were ranked by, group by group, in the order of the network."""

    method: str
    units: int
    groups: tuple[GroupScores, ...]


def score_facts(
    method: str, scores: Mapping[str, npt.NDArray[np.float64]], kept: Mapping[str, Sequence[int]]
) -> ScoreFacts:
    """Tell how scores are spread.

    Args:
        method: What gave them.
        scores: Group -> one score per unit, `[width]`, finite.
        kept: Group -> the indices of the units that stay; a group that is missing keeps all.

    >>> facts = score_facts("magnitude", {"conv": np.array([3.0, 1.0, 2.0])}, {"conv": [0, 2]})
    >>> facts.groups[0].ranks.median, facts.groups[0].kept_ranks.low
    (2.0, 2.0)
    """
    if not scores:
        return ScoreFacts(method, 0, ())
    ranks = np.split(
        _ranks(np.concatenate(list(scores.values()))),
        np.cumsum([len(values) for values in scores.values()])[:-1],
    )
    groups = []
    for (name, values), own in zip(scores.items(), ranks, strict=True):
        stays = np.asarray(kept.get(name, range(len(values))), dtype=np.int64)
        groups.append(
            GroupScores(
                name=name,
                units=len(values),
                kept=len(stays),
                scores=_box(values),
                ranks=_box(own),
                kept_scores=_box(values[stays]) if len(stays) else None,
                kept_ranks=_box(own[stays]) if len(stays) else None,
            )
        )
    return ScoreFacts(method, sum(group.units for group in groups), tuple(groups))


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Count from 1 in rising order; equal values share the mean of their ranks. SciPy's imports slowly.

    >>> _ranks(np.array([3.0, 1.0, 3.0, 5.0]))
    array([2.5, 1. , 2.5, 4. ])
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _box(values: npt.NDArray[np.float64]) -> Box:
    return Box(*(float(each) for each in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))))
