"""`python -m tests.benchmarks`: measure, print one table, write build/bench.json."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import decoding, orchestration

BUILD = Path("build")


@dataclass(frozen=True, slots=True)
class Row:
    """One claim and what was measured of it."""

    claim: str
    measured: float
    goal: str
    baseline: str


def measure(folder: Path) -> list[Row]:
    rows: list[tuple[str, Callable[[Path], float], str, str]] = [
        ("decode_over_fetch_video", decoding.measure, "at least 1", "qwen_vl_utils.fetch_video"),
        ("producer_samples_per_second", orchestration.measure_expansion, "at least 20000", "none"),
        ("orchestration_samples_per_second", orchestration.measure_fleet, "none set", "none"),
    ]
    return [Row(claim, round(call(folder), 3), goal, baseline) for claim, call, goal, baseline in rows]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="capflow-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        rows = measure(Path(name))
    table = Table(title="make bench", title_justify="left")
    for column in ("claim", "measured", "goal", "baseline"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.claim, f"{row.measured:g}", row.goal, row.baseline)
    Console().print(table)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
