"""Nodes that lose their media, never had them, or lack domain files, while real workers caption."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.store.statistics import Statistics
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, film_video, read_lines, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

SLOW = {"CAPFLOW_ENGINE": "tests.e2e.engines:build_slow", engines.ANSWER_SECONDS: "0.1"}


@contextmanager
def working(cli: Cli, name: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A worker whose working directory is `folder`; what `/proc/self/cwd` leads to differs by worker."""
    folder.mkdir(exist_ok=True)
    mine = Cli(folder, cli.environment | {"CAPFLOW_HOME": str(cli.home)} | environment, cli.mark)
    # A pipe that nobody reads would hold it up once it is full.
    options = ("-Q", "gpu", "-n", f"{name}@%h", "--logfile", cli.folder / f"{name}.log")
    with mine.start("celery", "-A", "capflow_tasks", "worker", *options) as worker:
        try:
            yield worker
        finally:
            worker.terminate()
            worker.communicate(timeout=60)


def plan_seen_by_some(folder: Path, samples: int) -> Path:
    """A plan whose media only processes in `folder/with` see, and the producer, in `folder`."""
    plan = write_plan(folder, entries_with_pictures(folder, samples))
    (folder / "with").mkdir()
    (folder / "media").rename(folder / "with" / "mounted")
    (folder / "mounted").symlink_to("with/mounted")
    (folder / "media").symlink_to("/proc/self/cwd/mounted")
    return plan


def faults(engine: Engine) -> dict[str, str]:
    """Why workers take no work, by the first part of their name."""
    workers = Statistics(engine).workers(lease_seconds=45)
    return {worker.node.partition("@")[0]: worker.fault for worker in workers if worker.fault}


def captioned(folder: Path) -> int:
    return len(read_lines(folder / "Rank0_node0_set.jsonl"))


def test_media_that_vanish_for_a_while_cost_no_sample(
    quick_cli: Cli, engine: Engine, eventually: Eventually
) -> None:
    def has_begun() -> None:
        assert sum(each.tally.done for each in Statistics(engine).runs())

    def is_paused() -> None:
        assert "does not exist here; mount it on this node" in " ".join(faults(engine).values())

    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 80))
    media, away = quick_cli.folder / "media", quick_cli.folder / "away"
    quick_cli.environment |= SLOW

    with quick_cli.start("capflow", "caption", plan, "-o", "out", "--batch-size", 2) as process:
        eventually(has_begun, 60)
        media.rename(away)
        eventually(is_paused)
        status = quick_cli.run("capflow", "status", plan)
        away.rename(media)
        _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert captioned(quick_cli.folder / "out") == 80
    assert "takes no work: the media root" in status.stdout
    assert "no worker takes work; the run goes on by itself when one can" in errors
    assert errors.count("takes no work") == 1
    assert "takes work again" in errors
    assert "Traceback" not in quick_cli.worker_log


def test_a_node_without_the_mount_leaves_the_work_to_others_and_is_named(
    quick_cli: Cli, engine: Engine, broker_url: str, eventually: Eventually
) -> None:
    cli, folder = quick_cli, quick_cli.folder
    cli.environment |= {"CAPFLOW_BROKER_URL": broker_url}
    plan = plan_seen_by_some(folder, 60)

    with working(cli, "without", folder / "without"):
        process = cli.start("capflow", "caption", plan, "-o", "out", "--batch-size", 2)
        eventually(lambda: _assert_equal(faults(engine).keys(), {"without"}), 60)
        doctor = cli.run("capflow", "doctor")
        before = cli.run("capflow", "caption", plan, "-o", "out", "--dry-run")
        with working(cli, "with", folder / "with"):
            _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert captioned(folder / "out") == 60
    assert before.returncode == 0, before.stderr
    assert f": the media root {folder}/media does not exist there; mount it, or other" in before.stdout
    assert "no worker sees all media" in before.stdout
    assert "worker without@" in errors
    assert "without@" in doctor.stdout
    assert f"takes no work: the media root {folder}/media does not exist here" in doctor.stdout


def test_a_node_without_the_domain_files_leaves_the_work_to_others(
    quick_cli: Cli, engine: Engine, broker_url: str, eventually: Eventually
) -> None:
    cli, folder = quick_cli, quick_cli.folder
    domains = folder / "domains"
    domains.mkdir()
    (domains / "aerial.yaml").write_text(
        "name: Aerial\ndescription: seen from above\nagents: {natural: {}, general_summary: {}}\n"
    )
    cli.environment |= {"CAPFLOW_BROKER_URL": broker_url}
    knowing = {"CAPFLOW_DOMAINS": str(domains)}
    plan = write_plan(folder, entries_with_pictures(folder, 20), task="Aerial")
    producer = Cli(folder, cli.environment | knowing, cli.mark)

    with working(cli, "plain", folder):
        process = producer.start("capflow", "caption", plan, "-o", "out", "--json")
        eventually(lambda: _assert_equal(faults(engine).keys(), {"plain"}), 60)
        said = faults(engine)["plain"]
    with working(cli, "knowing", folder, **knowing):
        output, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert json.loads(output)["done"] == 20
    assert "no domain file here has 'Aerial'" in said
    assert "CAPFLOW_DOMAINS" in said


def _assert_equal(found: object, expected: object) -> None:
    assert found == expected


#: Ends each process that multiprocessing starts, as decoders are, for as long as a file is there.
ENDS_CHILDREN = """
import os, sys
if "--multiprocessing-fork" in sys.orig_argv and os.path.exists({path!r}):
    os._exit(1)
"""


def test_a_full_disk_and_decoders_that_do_not_start_cost_no_sample(
    quick_cli: Cli, engine: Engine, eventually: Eventually
) -> None:
    def has_paused_for(reason: str) -> None:
        assert reason in " ".join(faults(engine).values())

    cli, folder = quick_cli, quick_cli.folder
    entries = [*entries_with_pictures(folder, 4), {"id": 4, "video": "clip.mp4"}]
    film_video(folder / "media" / "clip.mp4")
    plan = write_plan(folder, entries)
    broken, disk = folder / "broken", folder / "disk"
    broken.touch()
    disk.symlink_to("/dev/full")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(ENDS_CHILDREN.format(path=str(broken)))
    cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.engines:build",
        engines.REQUESTS: str(disk),
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), cli.environment.get("PYTHONPATH", "")]),
    }

    with cli.start("capflow", "caption", plan, "-o", "out", "--batch-size", 1) as process:
        eventually(lambda: has_paused_for("No space left on device: free space on its disk"), 60)
        disk.unlink()
        eventually(lambda: has_paused_for("no process that decodes videos starts on this node"), 60)
        broken.unlink()
        _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert captioned(folder / "out") == 5
    assert "takes work again" in errors


def test_media_that_only_workers_see_are_captioned(
    quick_cli: Cli, engine: Engine, broker_url: str, eventually: Eventually
) -> None:
    cli, folder = quick_cli, quick_cli.folder
    cli.environment |= {"CAPFLOW_BROKER_URL": broker_url}
    plan = write_plan(folder, entries_with_pictures(folder, 3), root="/proc/self/cwd/mounted")
    (folder / "with").mkdir()
    (folder / "media").rename(folder / "with" / "mounted")

    with working(cli, "with", folder / "with"):
        eventually(lambda: _assert_equal(len(Statistics(engine).workers(lease_seconds=45)), 1), 60)
        done = cli.run("capflow", "caption", plan, "-o", "out")

    assert done.returncode == 0, done.stderr
    assert captioned(folder / "out") == 3
    assert "there is no such folder here; workers may see it" in done.stderr
    assert "there; mount it" not in done.stderr
