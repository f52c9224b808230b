"""What the user says of how much stays, as text -> budgets and constraints."""

from __future__ import annotations

from prunecli.budget import Budget as Limit
from prunecli.budget import parse_amount
from prunecli.errors import UsageError
from prunecli.pipeline.settings import Budget
from prunecli.plan import Constraints


def limit_of(budget: Budget) -> Limit:
    """Return how many units may stay."""
    return Limit.parse(f"keep={budget.keep}" if budget.keep is not None else str(budget.target))


def constraints_of(budget: Budget) -> Constraints:
    """Return what else a plan must respect."""
    return Constraints(
        min_keep=parse_amount(budget.min_keep or "1", "--min-keep"),
        round_to=budget.round_to,
        ignore=budget.ignore,
        keep_layer=kept_layers(budget),
    )


def kept_layers(budget: Budget, of: str = "units") -> dict[str, int | float]:
    """Return what stays of the layers that have a share of their own: pattern -> amount of units, or weights.

    Raises:
        UsageError: it is not written PATTERN=SHARE.
    """
    return dict(_kept_layer(text, of) for text in budget.keep_layer)


def _kept_layer(text: str, of: str) -> tuple[str, int | float]:
    pattern, equals, amount = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"`--keep-layer {text}`: write PATTERN=SHARE, such as `layer1.*=0.8`.")
    return pattern, parse_amount(amount, f"--keep-layer {pattern}=", of)
