"""The states of batches and samples, and how they follow one another.

A batch:

    ready ──publish──> queued ──claim──> running ──finish──> done
      ^                  │  ^              │ │                 │
      │                  │  └──advance─────┘ │                 │
      └──lease ran out───┴──lease ran out / release            │
      └──retry or further stages───────────────────────────────┘

Batches of a stopped run stay ready: `stop` takes back those that are queued, and one that is running becomes
ready after its stage.

`lease_until` is when the reconciler may act on a batch that is not done. For a batch that is
    ready:    it may be published from then on (back-off)
    queued:   its message counts as lost from then on
    running:  its worker counts as dead from then on; a heartbeat extends it
All times are by PostgreSQL's clock, so a host's clock may jump.

A sample: pending ──> done | failed | held; a failed or held sample becomes pending again by retry.
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
    #: Routed with less confidence than the run asks for; waits until the run asks for less.
    HELD = "held"


STAGE_ORDER = {stage: position for position, stage in enumerate(Stage)}


def stage_after(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """Return the next of a run's `stages` after `stage`, None at the end."""
    later = (each for each in stages if STAGE_ORDER[each] > STAGE_ORDER[stage])
    return min(later, key=STAGE_ORDER.__getitem__, default=None)


def stages_from(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """Return the run's stages from `stage` on, in order."""
    return [
        each
        for each in sorted(stages, key=STAGE_ORDER.__getitem__)
        if STAGE_ORDER[each] >= STAGE_ORDER[stage]
    ]
