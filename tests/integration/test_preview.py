"""What `capflow caption --dry-run` says of a run before it starts."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import ServiceError, UserError
from capflow_tasks.settings import Settings
from capflow_tasks.store.statistics import Statistics
from producer.run import CaptionRun, Order
from tests.datasets import entries_with_pictures, write_plan
from tests.stores import Fleet, some_entries

pytestmark = pytest.mark.integration

UNKNOWN = "what it may take is not known: no sample was captioned with this workflow and model"


def preview(plan: Path, settings: Settings) -> list[str]:
    order = Order(plan, plan.parent / "out", "new", batch_size=4)
    return list(CaptionRun(order, settings).preview())


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path, entries_with_pictures(tmp_path, 4))


def test_before_the_first_run_nothing_is_known_and_nothing_is_started(plan: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"

    assert preview(plan, Settings(home=home)) == [UNKNOWN]
    assert not home.exists()


def test_an_earlier_run_tells_what_the_plan_may_take(plan: Path, engine: Engine, database_url: str) -> None:
    Fleet(engine, some_entries(4), domain="Natural").finish_all()

    (said,) = preview(plan, Settings(database_url=database_url, engine="tests:any"))

    assert said.startswith("4 samples may take ")
    assert said.endswith(" 208 tokens, as run run did (model; 1 worker)")


def test_a_root_without_media_is_told(plan: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "media").iterdir():
        path.unlink()

    said = preview(plan, Settings(home=tmp_path / "home"))

    assert said[0] == f"the media root {tmp_path}/media is empty here; mount it: until then its samples wait"


def test_a_remote_root_is_no_folder_to_mount(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, [{"image": "a.png"}], root="s3://bucket/set")

    assert preview(plan, Settings(home=tmp_path / "home")) == [UNKNOWN]


def test_a_file_of_others_is_refused_before_the_first_run_too(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Rank0_node0_set.jsonl").write_text("by a script")

    with pytest.raises(UserError, match="was not written by this run"):
        preview(plan, Settings(home=tmp_path / "home"))


def test_a_folder_that_cannot_be_written_is_refused_before_the_run_is_stored(
    plan: Path, engine: Engine, database_url: str, broker_url: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    settings = Settings(database_url=database_url, broker_url=broker_url)
    order = Order(plan, tmp_path / "notes.txt" / "out", "new", batch_size=4)

    with pytest.raises(ServiceError, match="name another folder with --output"):
        CaptionRun(order, settings).run(Event())

    assert Statistics(engine).runs("new") == []
