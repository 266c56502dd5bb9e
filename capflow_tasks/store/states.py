"""The states of batches and samples, and how they follow one another.

A batch:

    ready ──publish──> queued ──claim──> running ──finish──> done
      ^                  │  ^              │ │                 │
      │                  │  └──advance─────┘ │                 │
      └──lease ran out───┴──lease ran out / release            │
      └──retry or further stages───────────────────────────────┘

`lease_until` says when the reconciler may act on a batch that is not done. While it is
    ready:    not before this instant (back-off)
    queued:   its message is taken for lost after this instant
    running:  its worker is taken for dead after this instant; a heartbeat moves it on
All instants are PostgreSQL's clock, so a host's clock may jump.

A sample: pending ──> done | failed | held; a failed or held one becomes pending again by retry.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from capflow_tasks.records import Stage


class BatchState(StrEnum):
    READY = "ready"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class SampleState(StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    #: Routed with less confidence than the run asks for; waits for a run that asks for less.
    HELD = "held"


STAGE_ORDER = {stage: position for position, stage in enumerate(Stage)}


def stage_after(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """The next of a run's `stages` behind `stage`, None at the end."""
    later = (each for each in stages if STAGE_ORDER[each] > STAGE_ORDER[stage])
    return min(later, key=STAGE_ORDER.__getitem__, default=None)


def stages_from(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The run's stages that are still to do when `stage` is next, in order."""
    return [
        each
        for each in sorted(stages, key=STAGE_ORDER.__getitem__)
        if STAGE_ORDER[each] >= STAGE_ORDER[stage]
    ]
