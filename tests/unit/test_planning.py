from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.store.statistics import Coverage
from producer.planning.metafile import Dataset
from producer.planning.planner import Planned, PlanOrder, Work, make_plan, plan_lines
from producer.reading.annotations import read_entries
from producer.reading.plan import Plan, read_plan

WEIGHTS = {Modality.IMAGE: Fraction(1), Modality.VIDEO: Fraction(11)}

quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def a_dataset(name: str = "set", **changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "name": name,
        "root": "/media",
        "annotation": f"/{name}.json",
        "modality": Modality.IMAGE,
        "task": None,
        "length": None,
        "sample_count": None,
        "extra": {},
        **changes,
    }
    return Dataset(**fields)


@pytest.fixture
def collection(tmp_path: Path) -> Callable[..., Dataset]:
    """A dataset with an annotation file with this many entries."""
    (tmp_path / "media").mkdir()

    def collection(name: str, count: int, *, lines: bool = False, **changes: Any) -> Dataset:
        entries = [{"id": number, "image": f"ä{number}.png"} for number in range(count)]
        file = tmp_path / f"{name}.{'jsonl' if lines else 'json'}"
        file.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries, indent=1))
        return a_dataset(name, root=str(tmp_path / "media"), annotation=str(file), **changes)

    return collection


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Planned]:
    def plan_of(datasets: Sequence[Dataset], coverage: Any = None, **changes: Any) -> Planned:
        fields: dict[str, Any] = {
            "output": tmp_path / "plan.jsonl",
            "ranks": 4,
            "video_weight": Fraction(11),
            "samples": tmp_path / "samples",
            "seed": 0,
            "trusts_lengths": False,
            "processes": 1,
            **changes,
        }
        return make_plan(datasets, PlanOrder(**fields), lambda done, total: None, coverage)

    return plan_of


def read_back(folder: Path) -> Plan:
    return read_plan(folder / "plan.jsonl", load_catalogue().resolve)


def entries_of(lines: Sequence[JsonObject]) -> list[Any]:
    return [
        entry.value
        for line in lines
        for entry in read_entries(Path(line["json_url"]), line["start_idx"], line["end_idx"])
    ]


def refused(plan: Callable[[], object]) -> list[str]:
    with pytest.raises(PlanError) as error:
        plan()
    return str(error.value).split("\n")


# Balance


WORKS = st.lists(
    st.tuples(st.integers(0, 500), st.booleans(), st.lists(st.integers(0, 500), max_size=6)), max_size=12
)


def works_of(shapes: Sequence[tuple[int, bool, list[int]]]) -> list[Work]:
    """Datasets of so many samples, some of them captioned between pairs of cuts."""
    works = []
    for number, (total, is_video, cuts) in enumerate(shapes):
        ends = sorted({0, total, *(cut for cut in cuts if cut < total)})
        remaining = [range(*pair) for pair in list(pairwise(ends))[::2]]
        modality = Modality.VIDEO if is_video else Modality.IMAGE
        works.append(Work(a_dataset(str(number), modality=modality), f"/{number}", total, remaining))
    return works


@quietly
@given(shapes=WORKS, ranks=st.integers(1, 9))
def test_no_rank_gets_more_than_the_mean_and_one_sample(
    shapes: list[tuple[int, bool, list[int]]], ranks: int
) -> None:
    costs: Counter[int] = Counter()

    for line in plan_lines(works_of(shapes), ranks, WEIGHTS):
        costs[line["assign_rank"]] += (line["end_idx"] - line["start_idx"]) * int(
            WEIGHTS[Modality(line["modality"])]
        )

    assert all(0 <= rank < ranks for rank in costs)
    heaviest = 11 if any(is_video for _, is_video, _ in shapes) else 1
    assert all(cost < Fraction(costs.total(), ranks) + heaviest for cost in costs.values())


@quietly
@given(shapes=WORKS, ranks=st.integers(1, 9))
def test_every_remaining_sample_stands_in_exactly_one_line(
    shapes: list[tuple[int, bool, list[int]]], ranks: int
) -> None:
    works = works_of(shapes)
    taken: defaultdict[str, list[int]] = defaultdict(list)

    lines = plan_lines(works, ranks, WEIGHTS)

    for line in lines:
        assert line["start_idx"] < line["end_idx"]
        taken[line["data_name"]] += range(line["start_idx"], line["end_idx"])
    wanted = {work.dataset.name: [index for span in work.remaining for index in span] for work in works}
    assert taken == {name: indexes for name, indexes in wanted.items() if indexes}
    assert len(lines) <= sum(len(work.remaining) for work in works) + ranks - 1


def test_a_large_dataset_is_split_and_its_lines_agree_with_each_other() -> None:
    dataset = a_dataset("big", task="Natural", extra={"repeat_time": 1, "total": 5})

    lines = plan_lines([Work(dataset, "/x/big.json", 10, [range(2, 10)])], 3, WEIGHTS)

    assert lines[0] == {
        "data_name": "big",
        "json_url": "/x/big.json",
        "root": "/media",
        "task": "Natural",
        "modality": "image",
        "total": 10,
        "processed": 2,
        "remain": 8,
        "shard_index": 0,
        "num_shards": 3,
        "start_idx": 2,
        "end_idx": 5,
        "anno_file_key": "big.json",
        "assign_rank": 0,
        "repeat_time": 1,
    }
    varying = ("shard_index", "num_shards", "start_idx", "end_idx", "assign_rank")
    assert [tuple(line[key] for key in varying) for line in lines] == [
        (0, 3, 2, 5, 0),
        (1, 3, 5, 8, 1),
        (2, 3, 8, 10, 2),
    ]


def test_videos_weigh_more_than_pictures() -> None:
    works = [
        Work(a_dataset("clips", modality=Modality.VIDEO), "/clips", 10, [range(10)]),
        Work(a_dataset("pictures"), "/pictures", 110, [range(110)]),
    ]

    lines = plan_lines(works, 2, WEIGHTS)

    assert [(line["data_name"], line["assign_rank"]) for line in lines] == [("clips", 0), ("pictures", 1)]


# Plans


@pytest.mark.parametrize(
    "content",
    ['[{"image": "a"}, {"image": "b, ]"}, 3, "text", null]', '{"image": "a"}\n\n  \t\n3\nbroken\r\n[1]\n{\n'],
)
def test_entries_that_cannot_be_used_are_counted_as_well(
    plan_of: Callable[..., Planned], tmp_path: Path, content: str
) -> None:
    file = tmp_path / "set.json.gz"
    file.write_bytes(gzip.compress(content.encode()))

    assert plan_of([a_dataset(annotation=str(file))]).total == 5


def test_the_plan_is_accepted_by_its_reader_and_takes_every_entry(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path
) -> None:
    datasets = [
        collection("a", 10, task="Natural"),
        collection("b", 3, lines=True, modality=Modality.VIDEO),
        collection("c", 0),
    ]

    planned = plan_of(datasets)

    plan = read_back(tmp_path)
    assert plan.warnings == ()
    assert plan.sample_count == planned.total == planned.remain == 13
    assert [shard.line for shard in plan.shards] == list(planned.lines)
    assert sum(rank["samples"] for rank in planned.ranks) == 13
    assert planned.warnings == ['dataset "c": no entry is taken']


def test_a_length_that_differs_is_warned_of_and_the_count_is_what_counts(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned]
) -> None:
    dataset = collection("a", 10, length=12, sample_count=11)

    planned = plan_of([dataset])

    held = f"but {dataset.annotation} has 10 entries"
    assert planned.total == 10
    assert planned.warnings == [
        f'dataset "a": "length" is 12, {held}',
        f'dataset "a": "sample_count" is 11, {held}; all are taken',
    ]


def test_trusted_lengths_are_not_counted(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned]
) -> None:
    assert plan_of([collection("a", 10, length=7)], trusts_lengths=True).total == 7
    assert refused(lambda: plan_of([collection("a", 10)], trusts_lengths=True)) == [
        'dataset "a": lacks "length"; add it, or plan without --trust-lengths'
    ]


@pytest.mark.parametrize("lines", [False, True])
def test_a_sample_is_drawn_into_a_file_of_its_own_in_the_order_of_the_dataset(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path, lines: bool
) -> None:
    planned = plan_of([collection("a", 100, lines=lines, sample_count=30)])

    ids = [entry["id"] for entry in entries_of(planned.lines)]
    assert len(set(ids)) == 30
    assert ids == sorted(ids)
    assert read_back(tmp_path).warnings == ()
    assert planned.lines[0]["sampled_from"].startswith(str(tmp_path / "a.json"))
    assert planned.lines[0]["sample_seed"] == 0
    assert Path(planned.lines[0]["json_url"]).parent == tmp_path / "samples"


def test_the_same_seed_gives_the_same_sample_and_another_seed_another(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path
) -> None:
    dataset = collection("a", 100, sample_count=30)

    first = plan_of([dataset]).lines
    content = Path(first[0]["json_url"]).read_bytes()
    again = plan_of([collection("b", 5), dataset], ranks=1).lines
    other = plan_of([dataset], seed=1).lines

    assert again[-1]["json_url"] == first[0]["json_url"]
    assert Path(first[0]["json_url"]).read_bytes() == content
    assert other[0]["json_url"] != first[0]["json_url"]
    assert entries_of(other) != entries_of(first)


def test_unusable_entries_of_a_sample_fail_alone(plan_of: Callable[..., Planned], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('[[1], {"x": "\\ud800"}, {"image": "a.png"}, "text", {"image": "b.png"}]')
    (tmp_path / "media").mkdir()
    dataset = a_dataset(root=str(tmp_path / "media"), annotation=str(file), sample_count=4)

    seeds = [plan_of([dataset], seed=seed, ranks=1).lines for seed in range(8)]

    for lines in seeds:
        (line,) = lines
        entries = list(read_entries(Path(line["json_url"]), 0, 4))
        assert sum(entry.value is not None for entry in entries) in (1, 2)
        assert all((entry.value is None) != (entry.problem is None) for entry in entries)


def test_a_trusted_length_beyond_the_file_is_found_when_samples_are_drawn(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path
) -> None:
    dataset = collection("a", 10, length=1000, sample_count=500)

    (problem,) = refused(lambda: plan_of([dataset], trusts_lengths=True))

    assert problem.startswith(f'{dataset.annotation}: has 10 entries, but "length" is 1000')
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("samples/*"))
    assert not (tmp_path / "plan.jsonl").exists()


def test_every_annotation_file_that_breaks_is_reported_before_anything_is_written(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path
) -> None:
    datasets = [collection("a", 5, sample_count=2), collection("b", 5), collection("c", 5)]
    for name in ("b", "c"):
        (tmp_path / f"{name}.json").write_text('[{"id": 1},\n{"id": ')

    problems = refused(lambda: plan_of(datasets))

    assert [problem.split(" entry ")[0] for problem in problems] == [
        f'dataset "{name}": {tmp_path}/{name}.json:2:8:' for name in ("b", "c")
    ]
    assert not (tmp_path / "plan.jsonl").exists()
    assert not (tmp_path / "samples").exists()


def test_a_collection_without_an_entry_is_refused(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned]
) -> None:
    (problem,) = refused(lambda: plan_of([collection("a", 0), collection("b", 3, sample_count=0)]))

    assert problem.startswith("no entry to plan")


# What remains


def test_what_is_captioned_is_left_out_and_counted_as_processed(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path
) -> None:
    dataset = collection("a", 10)

    planned = plan_of(
        [dataset, collection("b", 2)],
        lambda files: {files[0]: Coverage([range(6), range(8, 9)], next_shard_index=4)},
        ranks=1,
    )

    assert [line["data_name"] for line in planned.lines] == ["a", "a", "b"]
    assert [(line["start_idx"], line["end_idx"]) for line in planned.lines] == [(6, 8), (9, 10), (0, 2)]
    first, second, other = planned.lines
    assert (first["total"], first["processed"], first["remain"]) == (10, 7, 3)
    # An earlier plan's files are not written over.
    assert (first["shard_index"], second["shard_index"], second["num_shards"]) == (4, 5, 6)
    assert (other["processed"], other["shard_index"], other["num_shards"]) == (0, 0, 1)
    assert read_back(tmp_path).sample_count == planned.remain == 5


def test_nothing_is_written_when_nothing_remains(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned], tmp_path: Path
) -> None:
    planned = plan_of([collection("a", 10)], lambda files: {files[0]: Coverage([range(12)])})

    assert (planned.total, planned.processed, planned.remain, planned.lines) == (10, 10, 0, [])
    assert not (tmp_path / "plan.jsonl").exists()


def test_a_plan_of_many_small_ranges_is_warned_of(
    collection: Callable[..., Dataset], plan_of: Callable[..., Planned]
) -> None:
    every_other = [range(index, index + 1) for index in range(0, 2002, 2)]

    planned = plan_of([collection("a", 2002)], lambda files: {files[0]: Coverage(every_other)})

    assert "what remains lies in 1001 ranges" in planned.warnings[0]


def test_a_plan_replaces_a_plan_and_nothing_else(
    plan_of: Callable[..., Planned], collection: Callable[..., Dataset], tmp_path: Path
) -> None:
    plan_of([collection("set", 2)])
    plan_of([collection("set", 2)])
    (tmp_path / "plan.jsonl").write_text("my notes\n")

    with pytest.raises(PlanError, match="is no split plan and stays as it is; name another file with --outp"):
        plan_of([collection("set", 2)])
    assert (tmp_path / "plan.jsonl").read_text() == "my notes\n"
