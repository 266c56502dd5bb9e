"""Every format of an export leaves the files of others as they are, and replaces its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.store.statistics import Statistics
from producer.reading.caption_files import Criteria, Rubrics
from producer.writing.card import CARD
from producer.writing.export import Exported, Order, export_run
from producer.writing.selection import Choice
from tests.datasets import draw_picture
from tests.stores import Fleet

pytestmark = pytest.mark.integration

FOREIGN = "written by someone else"
#: A file that each format writes or removes: a tar that is not needed is removed.
FILES = {
    "jsonl": "Rank0_node0_set.jsonl",
    "parquet": "Rank0_node0_set.parquet",
    "webdataset": "run-000007.tar",
    "messages": "run.jsonl",
    "llava": "run.json",
    "llama-factory": "run.jsonl",
    "ms-swift": "run.jsonl",
}


@pytest.fixture
def captioned(engine: Engine, tmp_path: Path) -> Fleet:
    draw_picture(tmp_path / "media" / "0.png", 0)
    fleet = Fleet(engine, [{"image": "0.png"}], domain="Natural", root=str(tmp_path / "media"))
    fleet.finish_all()
    return fleet


def export(fleet: Fleet, form: str, folder: Path, *, overwrites: bool = False) -> Exported:
    (run,) = Statistics(fleet.engine).runs(run_id=fleet.run_id)
    choice = Choice(Criteria(Rubrics(load_catalogue()), None, frozenset()))
    return export_run(fleet.views, run, Order(form, folder, choice, overwrites=overwrites))


@pytest.mark.parametrize("form", FILES)
def test_a_file_of_others_stays_and_the_runs_own_are_replaced(
    captioned: Fleet, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    theirs = folder / FILES[form]
    theirs.write_text(FOREIGN)

    with pytest.raises(UserError, match=f"{FILES[form]}: was not written by this run; choose another"):
        export(captioned, form, folder)

    assert [path.name for path in folder.iterdir()] == [theirs.name]
    assert theirs.read_text() == FOREIGN
    export(captioned, form, folder, overwrites=True)
    assert not theirs.exists() or theirs.read_bytes() != FOREIGN.encode()
    again = export(captioned, form, folder)
    assert again.has_card
    assert all(file.path.exists() for file in again.files)


def test_a_card_that_someone_has_edited_stays(captioned: Fleet, tmp_path: Path) -> None:
    export(captioned, "parquet", tmp_path)
    card = tmp_path / CARD
    card.write_text(card.read_text().replace("license: other", "license: cc-by-4.0"))

    exported = export(captioned, "parquet", tmp_path)

    assert not exported.has_card
    assert "cc-by-4.0" in card.read_text()
