"""The answer in one small table: the fleet's speed beside the bare engine's and the published one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from capflow_tasks.records import Modality
from tests.benchmarks.claims import Row

#: Samples per hour of the CapFlow scripts with Qwen2.5-VL-72B on one H200 (arXiv 2510.12126).
PUBLISHED = {Modality.IMAGE: 2542.0, Modality.VIDEO: 245.0}
#: Other ways to run the fleet's requests on the same card.
RIVALS = {
    "static_batches": "vllm.LLM.generate, stage by stage, media last",
    "bare": "the same engine and requests, no fleet",
}


def summary(rows: Sequence[Row], model: str) -> Table:
    """Return a line per figure and a column per kind of sample; "-" where nothing was measured."""
    shown = Table(title=f"\n{model}: the fleet beside others", title_justify="left")
    shown.add_column("")
    for kind in PUBLISHED:
        shown.add_column(f"{kind}s", justify="right")
    columns = [_figures(rows, model, kind) for kind in PUBLISHED]
    for name in columns[0]:
        shown.add_row(name, *(_words(column[name]) for column in columns))
    return shown


def _figures(rows: Sequence[Row], model: str, kind: Modality) -> dict[str, float | None]:
    found = {row.claim: row.measured for row in rows if isinstance(row.measured, float)}
    names = ("s_per_hour", "_over_bare", "_computed_over_minimum", "_prefix_hit_rate", "_requests_in_engine")
    per_hour, over_bare, over_least, hit_rate, requests = (
        found.get(f"{model}_{kind}{name}") for name in names
    )
    return {
        "fleet, per hour": per_hour,
        "scripts with 72B on one H200, as published, per hour": PUBLISHED[kind],
        "bare engine, per hour": per_hour / over_bare if per_hour and over_bare else None,
        "fleet over bare engine (goal: 0.97)": over_bare,
        "computed prompt tokens over the least (goal: 1.1)": over_least,
        "share of prompt tokens from the prefix cache": hit_rate,
        "requests in the engine, mean": requests,
    }


def _words(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
