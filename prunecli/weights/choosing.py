"""Scores of weights and a budget -> masks: exactly so many weights stay, ties broken by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor, prod

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.budget.amounts import rounded
from prunecli.errors import BudgetError, UsageError
from prunecli.plan import Scope
from prunecli.weights.network import Masks, WeightScores
from prunecli.weights.patterns import Pattern

_MOST = Fraction(10**18)
"""A compression ratio above this is a slip: no network has so many weights."""


class RatioBase(str, Enum):
    """Whose size a compression ratio divides."""

    WHOLE = "whole"  # all parameters, those that cannot be pruned too
    PRUNABLE = "prunable"  # the prunable weights


class MaskRule(str, Enum):
    """How scores become masks."""

    EXACT = "exact"  # exactly so many of the highest stay
    TWO_SIDED = "two-sided"  # what lies between -t and t goes, t being a quantile: see `two_sided`


@dataclass(frozen=True)
class WeightBudget:
    """How much of the weights may stay: 1 / ratio of the base."""

    ratio: Fraction
    base: RatioBase = RatioBase.WHOLE

    @property
    def text(self) -> str:
        """The budget as users write it."""
        return f"ratio={float(self.ratio):g}"

    @staticmethod
    def parse(
        ratio: str | None,
        keep: str | None,
        base: RatioBase = RatioBase.WHOLE,
        pattern: Pattern | None = None,
    ) -> WeightBudget:
        """Read a compression ratio, such as `32`, or the share that stays, such as `0.1` or `10%`.

        A pattern is a budget by itself.

        Raises:
            UsageError: It is neither, or there is none, or a pattern besides.

        >>> WeightBudget.parse("32", None).ratio, WeightBudget.parse(None, "10%").ratio
        (Fraction(32, 1), Fraction(10, 1))
        """
        option, text = ("--ratio", ratio) if ratio is not None else ("--keep", keep)
        if pattern is not None:
            if text is not None:
                raise UsageError(
                    f"`--pattern {pattern.text}` says how many weights stay: leave out `{option}`."
                )
            return WeightBudget(Fraction(pattern.of, pattern.kept), RatioBase.PRUNABLE)
        if text is None:
            raise UsageError("Say how many weights may stay: `--ratio 32`, or `--keep 0.1`.")
        try:
            share = text.endswith("%")
            value = Fraction(text.removesuffix("%")) / (100 if share else 1)
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if option == "--ratio":
            if not 1 <= value <= _MOST or share:
                raise UsageError(f"`--ratio {text}`: a compression ratio is a number from 1 on, such as 32.")
            return WeightBudget(value, base)
        if not 1 / _MOST <= value <= 1:
            raise UsageError(f"`--keep {text}`: the share of weights to keep is above 0 and at most 1.")
        return WeightBudget(1 / value, base)

    def count(self, prunable: int, others: int) -> int:
        """Return how many of the prunable weights stay: at least one.

        Args:
            prunable: How many there are.
            others: How many parameters there are besides.

        Raises:
            BudgetError: The others alone are more than may stay, or less than one weight would.
        """
        is_whole = self.base is RatioBase.WHOLE
        count = rounded((prunable + others) / self.ratio - others if is_whole else prunable / self.ratio)
        if count > 0:
            return count
        if is_whole and others:
            most = (prunable + others) / others
            raise BudgetError(
                f"A compression ratio of {float(self.ratio):g} leaves nothing to {prunable:,} prunable "
                f"weights: {others:,} parameters stay anyway. Below {most:.4g} it can be met; "
                "`--prune-classifier` makes more prunable, `--ratio-base prunable` leaves the others out."
            )
        raise BudgetError(
            f"A compression ratio of {float(self.ratio):g} leaves nothing to {prunable:,} prunable weights; "
            f"at most {2 * prunable:,} leaves one."
        )


@dataclass(frozen=True)
class Selection:
    """Among which weights the lowest scores are looked for, and what else masks must respect."""

    scope: Scope = Scope.GLOBAL
    rule: MaskRule = MaskRule.EXACT
    min_keep: int | float = 0
    """How many of each tensor stay at least: an int is weights, a float a share."""
    keep_layer: Mapping[str, int | float] = field(default_factory=dict)
    """Pattern of layers -> how much of each stays, whatever the budget."""
    pattern: Pattern | None = None
    """So many of every few weights in a row stay; nothing else says how many, or among which."""

    def __post_init__(self) -> None:
        """Refuse what contradicts a pattern.

        Raises:
            UsageError: Naming it.
        """
        refused = {
            "--scope layer": self.scope is Scope.LAYER,
            "--mask-rule two-sided": self.rule is MaskRule.TWO_SIDED,
            "--min-keep": bool(self.min_keep),
            "--keep-layer": bool(self.keep_layer),
        }
        given = next((option for option, is_given in refused.items() if is_given), None)
        if self.pattern is not None and given is not None:
            raise UsageError(
                f"`--pattern {self.pattern.text}` chooses among every {self.pattern.of} weights: leave out "
                f"`{given}`."
            )

    def within(self, model: nn.Module) -> Selection:
        """Return the selection with what its pattern must know of a model."""
        return self if self.pattern is None else replace(self, pattern=self.pattern.within(model))

    def notes(self, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Say of which tensors nothing can go."""
        return self.pattern.notes(shapes) if self.pattern is not None else ()

    def count(self, budget: WeightBudget, shapes: Mapping[str, Sequence[int]], others: int) -> int:
        """Return how many weights of prunable tensors stay; `others` are the parameters besides.

        Raises:
            BudgetError: The others alone are more than may stay.
        """
        if self.pattern is not None:
            return self.pattern.count(shapes)
        return budget.count(sum(prod(shape) for shape in shapes.values()), others)

    def masks(self, scores: WeightScores, count: int, before: Masks | None = None) -> dict[str, Tensor]:
        """Return masks in which `count` weights stay, or as many as are left.

        Args:
            scores: One number per weight, finite.
            count: How many stay in all.
            before: What is masked already, which stays so.

        Raises:
            BudgetError: More must stay than may.
            UsageError: A pattern names no layer, or the rule cannot respect what is asked for.
        """
        scores = {name: each.detach().double() for name, each in scores.items()}
        if self.pattern is not None:
            return self.pattern.masks(scores, before, count)
        if before is not None:
            scores = {name: each.masked_fill(~before[name], -torch.inf) for name, each in scores.items()}
        there = {name: each.numel() for name, each in scores.items()}
        if before is not None:
            there = {name: int(before[name].sum()) for name in scores}
        settled, least = self.check({name: each.numel() for name, each in scores.items()}, count, there)
        free = {name: each for name, each in scores.items() if name not in settled}
        count = min(count, sum(there.values()))
        chosen = {
            **{name: _highest(scores[name], kept) for name, kept in settled.items()},
            **self._free_masks(free, count - sum(settled.values()), least, there),
        }
        return {name: chosen[name] for name in scores}

    def check(
        self, sizes: Mapping[str, int], count: int, there: Mapping[str, int] | None = None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return how many weights stay where that is settled, and how many stay at least elsewhere.

        Args:
            sizes: How many weights each tensor has.
            count: How many stay in all.
            there: How many of each are not masked already; None: all.

        Raises:
            BudgetError: More must stay than may.
            UsageError: A pattern names no layer, or the rule cannot respect what is asked for.
        """
        there = there or sizes
        settled = self._settled(sizes, there)
        least = {
            name: min(_amount(self.min_keep, size), there[name])
            for name, size in sizes.items()
            if name not in settled
        }
        if self.rule is MaskRule.TWO_SIDED and any(least.values()):
            raise UsageError(
                "`--mask-rule two-sided` is a threshold, which keeps no least number. "
                "Leave out `--min-keep`, or the rule."
            )
        must = sum(settled.values()) + sum(least.values())
        if must > count:
            raise BudgetError(
                f"`--min-keep` and `--keep-layer` keep {must:,} weights, and the budget only {count:,}. "
                "Lower them, or the compression ratio."
            )
        return settled, least

    def _settled(self, sizes: Mapping[str, int], there: Mapping[str, int]) -> dict[str, int]:
        """Return how many weights stay in the tensors that `keep_layer` names."""
        settled = {}
        for pattern, amount in self.keep_layer.items():
            matched = [name for name in sizes if matches(pattern, name)]
            if not matched:
                raise UsageError(f"`--keep-layer {pattern}`: no prunable layer has such a name.")
            for name in matched:
                settled[name] = min(_amount(amount, sizes[name]), there[name])
        return settled

    def _free_masks(
        self, scores: WeightScores, count: int, least: Mapping[str, int], there: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Return masks where nothing is settled; what is masked already has a score of -inf."""
        sizes = {name: each.numel() for name, each in scores.items()}
        if not scores:
            return {}
        if self.rule is MaskRule.TWO_SIDED:
            return two_sided(scores, min(count / sum(sizes.values()), 1.0), self.scope)
        count = min(count, sum(there[name] for name in scores))
        if self.scope is Scope.LAYER:
            shared = _shared_out(count, sizes, least, there)
            return {name: _highest(each, shared[name]) for name, each in scores.items()}
        if any(least.values()):
            best = {name: _highest(each, least[name]) for name, each in scores.items()}
            scores = {name: each.masked_fill(best[name], torch.inf) for name, each in scores.items()}
        flat = torch.cat([each.flatten() for each in scores.values()])
        parts = _highest(flat, count).split(list(sizes.values()))
        return {
            name: part.reshape(each.shape) for (name, each), part in zip(scores.items(), parts, strict=True)
        }


def two_sided(scores: WeightScores, share: float, scope: Scope) -> dict[str, Tensor]:
    """Return the masks of published code: s goes where -t < s < t, with t the (1 - share) quantile of s.

    Harmless for scores from 0 on; of signed ones both tails stay, which halves the compression
    (METHODS 2.11). With t <= 0 everything stays.

    >>> two_sided({"w": torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])}, 0.5, Scope.GLOBAL)["w"].all().item()
    True
    """
    if scope is Scope.LAYER:
        return {name: _outside(each, _threshold([each], share)) for name, each in scores.items()}
    limit = _threshold(list(scores.values()), share)
    return {name: _outside(each, limit) for name, each in scores.items()}


def matches(pattern: str, parameter: str) -> bool:
    """Return whether a pattern names a parameter, or the layer that has it.

    >>> matches("layer1.*", "layer1.0.conv1.weight"), matches("conv1", "conv1.weight")
    (True, True)
    """
    return fnmatchcase(parameter, pattern) or fnmatchcase(parameter.rpartition(".")[0], pattern)


def _threshold(scores: list[Tensor], share: float) -> float:
    """Return what so large a share of all lies above; what is masked already (-inf) lies below."""
    values = torch.cat([each.flatten() for each in scores]).cpu().numpy()
    there = values[values > -np.inf]
    if not there.size:
        return 0.0
    return float(np.quantile(there, max(0.0, 1 - share * values.size / there.size)))


def _outside(scores: Tensor, limit: float) -> Tensor:
    return ~((scores > -limit) & (scores < limit)) & (scores > -torch.inf)


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` highest; of equals the last stay, as in a stable ascending sort.

    What is masked already (-inf) never stays.
    """
    flat = scores.flatten()
    there = flat > -torch.inf
    values = flat[there]
    gone = len(values) - count
    if gone <= 0:
        return there.reshape(scores.shape)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = values.kthvalue(gone).values
    stays = values > limit
    ties = (values == limit).nonzero().flatten()
    stays[ties[gone - int((values < limit).sum()) :]] = True
    there[there.clone()] = stays
    return there.reshape(scores.shape)


def _shared_out(
    count: int, sizes: Mapping[str, int], least: Mapping[str, int], most: Mapping[str, int]
) -> dict[str, int]:
    """Return the same share of each tensor, rounded so that the sum is exact: largest remainders first.

    Where that is too little or too much for a tensor, the others share the difference.
    """
    shared: dict[str, int] = {}
    while True:
        free = {name: size for name, size in sizes.items() if name not in shared}
        left, total = count - sum(shared.values()), sum(free.values())
        exact = {name: Fraction(left * size, max(total, 1)) for name, size in free.items()}
        low = {name: least[name] for name, each in exact.items() if each < least[name]}
        high = {name: most[name] for name, each in exact.items() if each > most[name]}
        if not low and not high:
            break
        excess = sum(exact[name] - limit for name, limit in {**low, **high}.items())
        shared |= high if excess > 0 or not low else low  # the larger of the two first: then the sum fits
    order = sorted(exact, key=lambda name: floor(exact[name]) - exact[name])  # stable: of equals the first
    missing = left - sum(floor(each) for each in exact.values())
    return {
        **shared,
        **{name: floor(exact[name]) + (rank < missing) for rank, name in enumerate(order)},
    }


def _amount(amount: int | float, of: int) -> int:
    """Return an amount as a number of weights: an int is one, a float a share."""
    return amount if isinstance(amount, int) else rounded(Fraction(repr(amount)) * of)
