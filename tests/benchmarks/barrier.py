"""Whether a slow answer holds up others: how full the fleet keeps an engine that only waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import fleet, write_plan
from tests.benchmarks.slots import JOURNAL, SLOTS, SlotCall, SlotEngine, read_calls
from tests.datasets import draw_picture

_SAMPLES = 240
#: Share of the answers that counts as steady state: at the end, the last samples leave every engine empty.
_STEADY = 0.9
#: Samples that the bare engine has in flight: more than its slots, so that it is never short of requests.
_BARE_SAMPLES = 2 * SLOTS


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Compare the fleet with the bare engine, and count its slots in use."""
    journal, media = bench.folder / "slots.jsonl", bench.folder / "media"
    draw_picture(media / "a.png", 1)
    entries = [_entry(media, number) for number in range(_SAMPLES)]
    plan = write_plan(bench.folder / "barrier.jsonl", entries, media)
    environment = {
        "CAPFLOW_ENGINE": "tests.benchmarks.slots:build",
        "CAPFLOW_LOG_LEVEL": "WARNING",
        JOURNAL: str(journal),
    }
    with fleet(bench.folder, environment) as running:
        running.add_workers(1)
        running.run(plan)
    calls = read_calls(journal)
    ours = _seconds([span for call in calls for span in call.held])
    theirs = _seconds(_replay(calls))
    share = _share_in_flight(calls)
    return {
        "requests_in_flight_share": Measured(
            share, f"{SLOTS} requests at once, answers of 180 tokens (median) to 600 (95th percentile)"
        ),
        "waiting_fleet_over_bare": Measured(
            theirs / ours, f"the same engine and calls, no fleet: {_STEADY * _SAMPLES / theirs:.2f} samples/s"
        ),
    }


def _entry(media: Path, number: int) -> dict[str, str]:
    (media / f"{number}.png").hardlink_to(media / "a.png")
    return {"image": f"{number}.png", "task": "Natural"}


def _seconds(held: Sequence[tuple[float, float]]) -> float:
    """Return the seconds from the first request to the answer after which no steady state is left."""
    ends = sorted(end for _, end in held)
    return ends[int(_STEADY * len(ends))] - min(begin for begin, _ in held)


def _replay(calls: Sequence[SlotCall]) -> list[tuple[float, float]]:
    """Take each sample through its calls, each once the one before is answered; return when they ran."""
    turns: dict[str, list[list[float]]] = {}
    for call in sorted(calls, key=lambda call: call.started):
        turns.setdefault(call.sample, []).append(call.seconds)
    engine = SlotEngine()

    def take_through(sample: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        return [span for seconds in sample for span in engine.wait(seconds)]

    with ThreadPoolExecutor(_BARE_SAMPLES) as threads:
        return [span for spans in threads.map(take_through, turns.values()) for span in spans]


def _share_in_flight(calls: Sequence[SlotCall]) -> float:
    """Return the share of slots in use, from when all are for the first time until the last sample begins."""
    held = [span for call in calls for span in call.held]
    since = sorted(begin for begin, _ in held)[SLOTS - 1]
    firsts: dict[str, float] = {}
    for call in calls:
        firsts[call.sample] = min(call.started, firsts.get(call.sample, call.started))
    until = max(firsts.values())
    used = sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in held)
    return used / (SLOTS * (until - since))
