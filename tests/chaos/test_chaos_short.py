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
