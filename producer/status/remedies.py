"""The commands to type next, for a run as it was started."""

from __future__ import annotations

import shlex
from pathlib import Path

from capflow_tasks.errors import BadEntry
from capflow_tasks.records import Stage
from capflow_tasks.store.figures import FailureKind, RunFigures
from producer.production import name_of_run

#: What `--output` is when nobody gives it, seen from the working directory.
_DEFAULT_OUTPUT = Path("Output/Caption")


def retry_line(run: RunFigures, failure: FailureKind) -> str | None:
    """The capflow-retry that tries these failures again; None where no retry can help or be typed.

    It says again what the run was asked for: a retry with other stages would broaden the run.
    """
    if failure.kind == BadEntry.kind or run.stages == (Stage.SCORE,):
        # An entry is to be mended first; what capflow-score made has no plan.
        return None
    words = ["capflow-retry", run.plan, "--kind", failure.kind]
    if run.name != name_of_run(Path(run.plan)):
        words += ["--run", run.name]
    if Path(run.output) != _DEFAULT_OUTPUT.absolute():
        words += ["--output", run.output]
    if run.stages != tuple(Stage):
        words += ["--stages", ",".join(run.stages)]
    if run.min_confidence:
        words += ["--min-confidence", f"{run.min_confidence:g}"]
    if run.pin_ranks:
        words.append("--pin-ranks")
    return shlex.join(words)
