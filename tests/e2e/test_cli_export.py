"""capflow-export on a run that is half done, and what it does when the disk is full."""

from __future__ import annotations

import json
import resource
import subprocess
import tarfile
from pathlib import Path

import pytest
from pyarrow import parquet
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import Stage
from capflow_tasks.store.states import Outcome
from tests.datasets import draw_picture, read_lines
from tests.e2e.conftest import REPOSITORY, Cli
from tests.stores import Fleet, a_failure, a_result

pytestmark = pytest.mark.e2e


@pytest.fixture
def fleet(engine: Engine, folder: Path) -> Fleet:
    """A run of five samples: one has failed, three are captioned, one is still to come."""
    for number in range(5):
        draw_picture(folder / "media" / f"{number}.png", number)
    entries = [{"id": number, "image": f"{number}.png"} for number in range(5)]
    fleet = Fleet(engine, entries, batch_size=4, domain="Natural", root=str(folder / "media"))
    first, *others = fleet.sample_ids()
    gone = Outcome(first, failure=a_failure(Stage.PERCEIVE, MediaMissing("gone")))
    seen = [Outcome(each, (a_result(Stage.PERCEIVE),)) for each in others]
    fleet.finish(fleet.claim(Stage.PERCEIVE), [gone, *seen])
    fleet.finish_all(first=Stage.REASON)
    return fleet


def failed(cli: Cli, *arguments: object) -> str:
    """The one line in which the command says why it gave up."""
    answer = cli.run("capflow-export", *arguments)
    assert (answer.returncode, answer.stdout) in {(2, ""), (3, "")}, answer.stderr
    (line,) = answer.stderr.splitlines()
    return line.removeprefix("capflow-export: error: ")


def test_a_run_is_exported_as_far_as_it_has_come(quick_cli: Cli, fleet: Fleet) -> None:
    out = quick_cli.folder / "out"

    lines = quick_cli.run("capflow-export", "run", "-o", "out")
    table = quick_cli.run("capflow-export", "/plan.jsonl", "--format", "parquet", "-o", "out", "--json")
    (quick_cli.folder / "media" / "2.png").unlink()
    tars = quick_cli.run("capflow-export", "run", "--format", "webdataset", "-o", "out")

    assert lines.returncode == 0, lines.stderr
    assert lines.stderr == "5 samples: 3 captioned, 1 failed, 1 not finished yet\n"
    captions = out / "Rank0_node0_set.jsonl"
    assert lines.stdout.splitlines()[0] == f"{captions}: 3 samples"
    assert [record["id"] for record in read_lines(captions)] == [1, 2, 3]
    assert json.loads(table.stdout) == {
        "run": "run",
        "format": "parquet",
        "done": 3,
        "failed": 1,
        "held": 0,
        "remaining": 1,
        "rejected": 0,
        "left_out": 0,
        "files": [{"path": str(out / "Rank0_node0_set.parquet"), "samples": 3}],
    }
    assert parquet.read_table(out / "Rank0_node0_set.parquet")["index"].to_pylist() == [1, 2, 3]
    assert tars.returncode == 1
    assert "1 left out, as media cannot be read" in tars.stderr
    with tarfile.open(out / "run-000000.tar") as tar:
        assert [name[-6:] for name in tar.getnames()[2::3]] == ["01.png", "03.png"]


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    quick_cli: Cli, fleet: Fleet, form: str
) -> None:
    answer = _with_small_files(quick_cli, "run", "--format", form, "-o", "out")

    assert answer.returncode == 3, answer.stderr
    (line,) = answer.stderr.splitlines()
    assert "cannot be written: File too large; free or repair the disk, then run again" in line
    assert list((quick_cli.folder / "out").iterdir()) == []


def _with_small_files(cli: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where no file may be larger than a few bytes, which fails as a full disk does."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
    try:
        process = cli.start("capflow-export", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    with process:
        output, errors = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_what_cannot_be_exported_is_one_sentence(quick_cli: Cli, fleet: Fleet) -> None:
    assert failed(quick_cli, "other.jsonl") == (
        "other.jsonl: the database has no run of this name or plan; name one of: run"
    )
    (quick_cli.folder / "pyarrow.py").write_text("raise ImportError('not here')")
    quick_cli.environment["PYTHONPATH"] = f"{quick_cli.folder}:{REPOSITORY}"
    remedy = "--format parquet needs pyarrow: pip install '.[export]'"
    assert failed(quick_cli, "run", "--format", "parquet") == remedy
