"""What users write for amounts, parsed: `keep=0.5`, `macs=2.0G`, `params=30%`, `8`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import floor

from typing_extensions import assert_never

from prunecli.arguments import nearest
from prunecli.errors import UsageError

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_NUMBER = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<suffix>[KMGT%]?)", re.IGNORECASE)


class Currency(str, Enum):
    """What a budget counts."""

    UNITS = "units"
    MACS = "macs"
    PARAMS = "params"


@dataclass(frozen=True)
class Budget:
    """How much of the network may stay: a share or an absolute amount, of units, MACs or parameters."""

    currency: Currency
    limit: Fraction | int
    """A share as a Fraction, an absolute amount as an int."""
    of_free: bool
    """True for a share of the units that are free to go, leaving out those that constraints settle."""
    text: str

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `keep=SHARE` or `CURRENCY=AMOUNT`.

        A share is written with a decimal point (`0.5`) or as a percentage (`50%`); an absolute amount is
        a whole number (`300000`) or has a suffix (`300K`, `2.0G`). `keep` is a share of the units that are
        free to go, so that `--ignore` leaves the others alone; `units` is one of all units.

        Raises:
            UsageError: It is neither.

        >>> Budget.parse("macs=2.0G").limit, Budget.parse("keep=0.5").limit
        (2000000000, Fraction(1, 2))
        """
        name, _, amount = text.partition("=")
        names = ("keep", *(str(currency.value) for currency in Currency))
        if name not in names or not amount:
            raise UsageError(
                f"`{text}` is no budget.{nearest(name, names) if name not in names else ''} Expected one of "
                f"{', '.join(names)}, then an amount: `macs=0.5`."
            )
        if name == "keep":
            share = _share(amount) or _share(f"{amount}.")  # `keep=1` can mean nothing else
            if share is None:
                raise UsageError(
                    f"`{text}`: the share of units to keep is above 0 and at most 1, like 0.5 or 50%."
                )
            return Budget(Currency.UNITS, share, of_free=True, text=text)
        return Budget(Currency(name), _limit(text, amount), of_free=False, text=text)

    def allowed(self, dense: int, *, settled: int, free: int) -> int:
        """Return how much may stay.

        Args:
            dense: What there is in all, in the budget's currency.
            settled: How many units stay whatever the budget.
            free: How many other units there are.
        """
        if isinstance(self.limit, int):
            return self.limit
        if self.of_free:
            return settled + rounded(self.limit * free)
        match self.currency:
            case Currency.UNITS:
                return rounded(self.limit * dense)
            case Currency.MACS | Currency.PARAMS:
                return floor(self.limit * dense)
            case _:
                assert_never(self.currency)


def parse_amount(text: str, option: str, of: str = "units") -> int | float:
    """Read a number of units (`8`, an int) or a share of a group (`0.1` or `10%`, a float).

    Args:
        text: What the user wrote.
        option: Behind which option, for the message.
        of: What is counted: `units`, or `weights` of a layer.

    Raises:
        UsageError: It is neither.
    """
    share = _share(text)
    if share is not None:
        return float(share)
    if text.isdecimal() and int(text) > 0:
        return int(text)
    written = f"{option}{text}" if option.endswith("=") else f"{option} {text}"
    raise UsageError(f"`{written}`: expected {of} (1, 2, ...) or a share of the layer (0.1 or 10%).")


def units_of(amount: int | float, width: int) -> Fraction:
    """Return how many units of a group an amount is, not yet rounded.

    >>> units_of(0.1, 30)  # and not 3.0000000000000004
    Fraction(3, 1)
    """
    return Fraction(min(amount, width)) if isinstance(amount, int) else Fraction(repr(amount)) * width


def rounded(number: Fraction) -> int:
    """Round to the nearest integer, halves up."""
    return floor(number + Fraction(1, 2))


def _limit(text: str, amount: str) -> Fraction | int:
    share = _share(amount)
    if share is not None:
        return share
    match = _NUMBER.fullmatch(amount)
    if match is None or match["suffix"] == "%" or ("." in amount and not match["suffix"]):
        raise UsageError(
            f"`{text}`: expected a share above 0 and up to 1 (0.5 or 50%), or an amount (300000, 2.0G)."
        )
    value = Fraction(match["number"]) * _SUFFIXES[match["suffix"].upper()]
    if value < 1:
        raise UsageError(f"`{text}`: nothing would be left. Give a share like 0.5, or an amount like 300K.")
    return floor(value)


def _share(text: str) -> Fraction | None:
    """Return the share that `text` writes, None if it writes something else or is out of (0, 1]."""
    match = _NUMBER.fullmatch(text)
    if match is None or (match["suffix"] != "%" and (match["suffix"] or "." not in match["number"])):
        return None
    share = Fraction(match["number"]) / (100 if match["suffix"] else 1)
    return share if 0 < share <= 1 else None
