"""Amounts as people read them: durations, counts, rates, money."""

from __future__ import annotations

_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"))

_UNKNOWN = "-"


def duration(seconds: float | None) -> str:
    """Two units at the most: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return "unknown"
    for size, unit, smaller_size, smaller_unit in _UNITS:
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {unit} {rest // smaller_size} {smaller_unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def count(number: int) -> str:
    return f"{number:,}"


def short_count(number: float) -> str:
    """Three digits and a unit: `950`, `12.3k`, `4.56M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share:.1%}"


def usd(amount: float | None) -> str:
    """Cents, and two digits of what is less than ten of them."""
    if amount is None:
        return _UNKNOWN
    if 0 < amount < 0.0001:
        return "less than $0.0001"
    if 0 < amount < 0.1:
        return f"${amount:.2g}"
    return f"${amount:,.2f}"
