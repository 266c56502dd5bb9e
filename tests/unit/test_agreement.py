"""Figures about two judges, against values computed by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject
from producer.agreement import Agreement, compare
from producer.reading.caption_files import Rubrics
from tests.unit.test_scoring import NAME, a_record, graded

RUBRICS = Rubrics(load_catalogue())


@pytest.mark.parametrize(
    ("pairs", "exact", "difference", "kappa"),
    [
        # Squares of the differences: found 1. By chance (rows 1, 1, 2; columns 1, 2, 1): 20 / 4 = 5.
        ([(1, 1), (2, 2), (3, 3), (3, 2)], 0.75, -0.25, 1 - 1 / 5),
        ([(1, 1), (2, 2), (3, 3)], 1.0, 0.0, 1.0),
        # Found 4 + 4. By chance (1, 0, 1 against 1, 0, 1): (4 + 4) / 2 = 4.
        ([(1, 3), (3, 1)], 0.0, 0.0, -1.0),
        # One judge gives a 3 to all: found 4 + 1. By chance: (4 + 1 + 0) * 3 / 3 = 5.
        ([(1, 3), (2, 3), (3, 3)], 1 / 3, 1.0, 0.0),
        ([(3, 3), (3, 3)], 1.0, 0.0, None),
    ],
)
def test_the_figures_are_those_computed_by_hand(
    pairs: list[tuple[int, int]], exact: float, difference: float, kappa: float | None
) -> None:
    found = Agreement(Counter(pairs))

    assert found.captions == len(pairs)
    assert found.exact == pytest.approx(exact)
    assert found.mean_difference == pytest.approx(difference)
    assert found.kappa == (None if kappa is None else pytest.approx(kappa))


def a_folder(folder: Path, name: str, *records: JsonObject) -> Path:
    folder.mkdir()
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_same_captions_are_compared_and_others_are_counted(tmp_path: Path) -> None:
    first = a_folder(
        tmp_path / "first",
        NAME,
        *(graded(a_record(number), grade) for number, grade in enumerate([3, 3, 2, 1])),
    )
    second = a_folder(
        tmp_path / "second",
        NAME.replace(".jsonl", ".scored.jsonl"),
        graded(a_record(1), 2),
        graded(a_record(0), 3) | {"errors": ["a chair is missing"]},
        graded(a_record(2, caption="Another caption."), 2),
        a_record(3),
    )

    found = compare(first, second, RUBRICS)

    assert (found.captions, found.only_first, found.only_second) == (2, 2, 1)
    assert found.dimensions.keys() == {*graded(a_record())["scores"], "overall"}
    assert found.dimensions["overall"].pairs == {(3, 3): 1, (3, 2): 1}


def test_folders_without_a_common_caption_are_refused_with_what_to_do(tmp_path: Path) -> None:
    first = a_folder(tmp_path / "first", NAME, graded(a_record(0)))
    second = a_folder(tmp_path / "second", NAME, graded(a_record(1)))

    with pytest.raises(UserError, match=r"capflow score .*first --anew -o .*second"):
        compare(first, second, RUBRICS)
