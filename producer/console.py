"""What commands print for people: durations, counts, rates, money, tables."""

from collections.abc import Iterable

from rich.table import Table

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

_UNKNOWN = "-"


def duration(seconds: float | None) -> str:
    """The two largest units: `0.25 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `2 d 4 h`."""
    if seconds is None:
        return "unknown"
    if 0 < seconds < 9.5:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    rest = round(seconds)
    for name, size in _UNITS:
        whole, rest = divmod(rest, size)
        if whole or parts:
            parts.append(f"{whole} {name}" if whole else "")
    return " ".join(filter(None, parts[:2])) or "0 s"


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
    """Dollars and cents; below ten cents, two significant digits."""
    if amount is None:
        return _UNKNOWN
    if 0 < amount < 0.0001:
        return "less than $0.0001"
    if 0 < amount < 0.1:
        return f"${amount:.2g}"
    return f"${amount:,.2f}"


def workers_text(alive: int) -> str:
    return f"{alive} {'worker' if alive == 1 else 'workers'}"


def table(title: str | None, texts: Iterable[str], numbers: Iterable[str], *last: str) -> Table:
    """A table without rows: columns of text, then of numbers, then of text again."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    for name in texts:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right")
    for name in last:
        made.add_column(name, overflow="fold")
    return made
