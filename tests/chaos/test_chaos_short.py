"""The short form of `make chaos`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.scenarios import SHORT, SHORT_SAMPLES

pytestmark = pytest.mark.e2e


def test_a_fleet_that_is_struck_in_every_way_loses_repeats_and_doubles_nothing() -> None:
    # Not in pytest's own folder: PostgreSQL, which runs as another user than root, may not enter it.
    with tempfile.TemporaryDirectory(prefix="capflow-chaos-", ignore_cleanup_errors=True) as folder:
        verdicts = list(run([(name, 1) for name in SHORT], SHORT_SAMPLES, Path(folder)))

    assert [verdict for verdict in verdicts if not verdict.is_clean] == []
    assert all(verdict.faults for verdict in verdicts)


def test_a_scenario_that_cannot_be_played_does_not_end_the_others() -> None:
    with tempfile.TemporaryDirectory(prefix="capflow-chaos-", ignore_cleanup_errors=True) as folder:
        unplayed, played = run([("no-such-scenario", 1), ("flushall", 1)], 64, Path(folder))

    assert (unplayed.is_clean, played.is_clean) == (False, True)
    assert "could not be played" in " ".join(unplayed.complaints)
