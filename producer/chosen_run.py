"""The run that a command is about, by its own name or by its plan's path."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from capflow_tasks.errors import UserError
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.statistics import Statistics

#: Runs that a message names.
_SHOWN = 10


def chosen_run(engine: Engine, name_or_plan: str) -> RunFigures:
    """The run of this name, else the only one of this plan. Raises UserError when there is not just one."""
    statistics = Statistics(engine)
    found = statistics.runs(name_or_plan, str(Path(name_or_plan).resolve()))
    found = [run for run in found if run.name == name_or_plan] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name_or_plan} has several runs; name one of them: {_names(found)}")
    known = statistics.runs()
    remedy = f"name one of: {_names(known)}" if known else "start one with capflow-produce"
    raise UserError(f"{name_or_plan}: the database has no run of this name or plan; {remedy}")


def _names(runs: list[RunFigures]) -> str:
    """The newest of them."""
    shown = [run.name for run in runs[:_SHOWN]]
    return ", ".join([*shown, f"and {len(runs) - _SHOWN} more"] if len(runs) > _SHOWN else shown)
