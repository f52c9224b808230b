"""What users write for amounts."""

from __future__ import annotations

from fractions import Fraction

import pytest

from prunecli.budget import Budget, Currency, parse_amount
from prunecli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "currency", "limit"),
    (
        ("keep=0.5", Currency.UNITS, Fraction(1, 2)),
        ("keep=50%", Currency.UNITS, Fraction(1, 2)),
        ("keep=1", Currency.UNITS, Fraction(1)),
        ("units=0.7", Currency.UNITS, Fraction(7, 10)),
        ("units=300", Currency.UNITS, 300),
        ("macs=.25", Currency.MACS, Fraction(1, 4)),
        ("macs=1.0", Currency.MACS, Fraction(1)),
        ("macs=2.0G", Currency.MACS, 2_000_000_000),
        ("macs=300m", Currency.MACS, 300_000_000),
        ("params=12.5%", Currency.PARAMS, Fraction(1, 8)),
        ("params=1.5K", Currency.PARAMS, 1500),
    ),
)
def test_reads_budgets(text: str, currency: Currency, limit: Fraction | int) -> None:
    budget = Budget.parse(text)
    assert (budget.currency, budget.limit, budget.text) == (currency, limit, text)
    assert isinstance(budget.limit, Fraction) is isinstance(limit, Fraction)
    assert budget.of_free is text.startswith("keep")


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("0.5", "`0.5` is no budget. Expected one of keep, units, macs, params"),
        ("flops=0.5", "`flops=0.5` is no budget"),
        ("macs=", "`macs=` is no budget"),
        ("keep=64", "the share of units to keep is above 0 and at most 1"),
        ("keep=0.0", "above 0 and at most 1"),
        ("keep=1.2", "above 0 and at most 1"),
        ("macs=1.5", "`macs=1.5`: expected a share above 0 and up to 1"),
        ("macs=150%", "expected a share"),
        ("macs=-1", "expected a share"),
        ("macs=2.0X", "expected a share"),
        ("macs=0", "nothing would be left"),
    ),
)
def test_refuses_what_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget.parse(text)


def test_shares_are_exact() -> None:
    assert Budget.parse("units=0.35").allowed(10, settled=0, free=0) == 4  # 3.5, halves up
    assert Budget.parse("keep=0.35").allowed(99, settled=7, free=10) == 11
    assert Budget.parse("macs=0.29").allowed(100, settled=0, free=0) == 29  # 0.29 * 100 < 29 in floats
    assert Budget.parse("macs=0.999").allowed(100, settled=0, free=0) == 99
    assert Budget.parse("macs=77").allowed(100, settled=0, free=0) == 77


@pytest.mark.parametrize(("text", "amount"), (("1", 1), ("8", 8), ("0.1", 0.1), ("10%", 0.1), ("1.0", 1.0)))
def test_reads_amounts(text: str, amount: int | float) -> None:
    found = parse_amount(text, "--min-keep")
    assert (found, type(found)) == (amount, type(amount))


@pytest.mark.parametrize("text", ("0", "1.5", "-1", "few", "0.0", ""))
def test_refuses_what_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match=f"`--min-keep {text}`: expected units"):
        parse_amount(text, "--min-keep")
