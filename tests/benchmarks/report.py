"""Show the results as a table, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from tests.benchmarks.claims import Row

#: The keys of a claim in bench.json.
_COLUMNS = ("claim", "measured", "goal", "baseline")
#: Longest bar; the number beside it says more.
_WIDEST = 3.0
_STYLES = {True: "green", False: "red", None: ""}
_COLOURS = {True: "#2a7f62", False: "#b5403a", None: "#8a8f98"}


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="make bench", title_justify="left")
    shown.add_column("claim", no_wrap=True)
    shown.add_column("measured", justify="right", no_wrap=True)
    shown.add_column("goal", no_wrap=True)
    shown.add_column("baseline")
    for row in rows:
        shown.add_row(row.claim, _number(row), row.goal, row.baseline, style=_STYLES[row.is_met])
    return shown


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows; claims that were not measured this time stay as the file has them."""
    known = {row["claim"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    new = {row.claim: {column: getattr(row, column) for column in _COLUMNS} for row in rows}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(list((known | new).values()), indent=2, ensure_ascii=False) + "\n")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw one bar per claim: the share of its goal that is reached."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawn = [row for row in rows if isinstance(row.measured, float)][::-1]
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.42 * len(drawn)), layout="constrained")
    shares = [1.0 if row.share is None else min(row.share, _WIDEST) for row in drawn]
    axes.barh([row.claim for row in drawn], shares, color=[_COLOURS[row.is_met] for row in drawn], height=0.6)
    for place, (row, share) in enumerate(zip(drawn, shares, strict=True)):
        words = f"{_number(row)}   (goal: {row.goal})"
        axes.text(max(share, 1) + 0.05, place, words, va="center", fontsize=9)
    axes.axvline(1, color="#333", linewidth=1)
    axes.set_xlim(0, _WIDEST + 1.4)
    axes.set_xlabel(f"share of the goal that is reached, drawn up to {_WIDEST:g}; grey: no goal is set")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _number(row: Row) -> str:
    if isinstance(row.measured, str):
        return row.measured
    return f"{row.measured:,.0f}" if row.measured >= 1000 else f"{row.measured:.4g}"
