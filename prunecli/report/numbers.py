"""How counts, sizes and shares are written for people."""

from __future__ import annotations

from collections.abc import Sequence


def human(number: int) -> str:
    """Write a count with three digits and a unit.

    >>> [human(n) for n in (0, 999, 1_234, 40_960_000, 999_999, 4_089_184_256)]
    ['0', '999', '1.23K', '41.0M', '1.00M', '4.09G']
    """
    return _scaled(number, ("", "K", "M", "G", "T", "P"), "")


def human_bytes(size: int) -> str:
    """Write a file size, in powers of 1000.

    >>> human_bytes(1_093_000)
    '1.09 MB'
    """
    return _scaled(size, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def percent(share: float) -> str:
    """Write a share of 1.

    >>> percent(0.4687), percent(1.0), percent(0.0004)
    ('46.9%', '100%', '0.0%')
    """
    text = f"{100 * share:.1f}%"
    return "100%" if text == "100.0%" else text


def milliseconds(time: float) -> str:
    """Write a time that is given in milliseconds.

    >>> milliseconds(0.01234), milliseconds(999.6), milliseconds(12_345.6)
    ('0.0123 ms', '1,000 ms', '12,346 ms')
    """
    return f"{time:,.0f} ms" if time >= 999.5 else f"{time:.3g} ms"


def _scaled(number: int, units: Sequence[str], gap: str) -> str:
    if abs(number) < 1000:
        return f"{number}{gap}{units[0]}".rstrip()
    value = float(number)
    for unit in units:
        digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
        if abs(round(value, digits)) < 1000:
            return f"{value:.{digits}f}{gap}{unit}"
        value /= 1000
    return f"{value * 1000:.0f}{gap}{units[-1]}"
