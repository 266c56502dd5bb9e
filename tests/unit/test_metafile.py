from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from producer.planning.metafile import Dataset, read_metafile

RESOLVE = load_catalogue().resolve

#: The published example of the format, with other paths.
EXAMPLE = """{
"ADE20K": {
"root": "media",
"annotation": "ADE20k.json",
"length": 100000,
"task": "Natural",
"sample_count": 42522,
"modality": "image"
}
}"""


def entry(**changes: Any) -> JsonObject:
    return {"root": "media", "annotation": "ADE20k.json", "modality": "image", **changes}


@pytest.fixture
def metafile(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    for name in ("ADE20k.json", "other.json", "third.json"):
        (tmp_path / name).write_text("[]")
    return tmp_path / "Metafile.json"


@pytest.fixture
def read(metafile: Path) -> Callable[[Any], tuple[Dataset, ...]]:
    def read(content: Any) -> tuple[Dataset, ...]:
        metafile.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_metafile(metafile, RESOLVE)

    return read


@pytest.fixture
def problems(read: Callable[[Any], object], metafile: Path) -> Callable[[Any], list[str]]:
    """What the metafile is refused for, without its path."""

    def problems(content: Any) -> list[str]:
        with pytest.raises(PlanError) as refused:
            read(content)
        messages = str(refused.value).split("\n")
        assert all(message.startswith(f"{metafile}:") for message in messages)
        return [message.removeprefix(f"{metafile}:").strip() for message in messages]

    return problems


def test_the_published_example_is_read_as_it_stands(
    read: Callable[[Any], tuple[Dataset, ...]], metafile: Path
) -> None:
    (dataset,) = read(EXAMPLE)

    assert dataset == Dataset(
        name="ADE20K",
        root=str(metafile.parent / "media"),
        annotation=str(metafile.parent / "ADE20k.json"),
        modality=Modality.IMAGE,
        task="Natural",
        length=100000,
        sample_count=42522,
        extra={},
    )


def test_counts_and_task_may_be_left_out_and_unknown_keys_are_kept(
    read: Callable[[Any], tuple[Dataset, ...]],
) -> None:
    (dataset,) = read({"d": entry(repeat_time=2, licence={"name": "CC0"}, task="", length=None)})

    assert (dataset.task, dataset.length, dataset.sample_count) == (None, None, None)
    assert dataset.extra == {"repeat_time": 2, "licence": {"name": "CC0"}}


def test_datasets_come_in_the_order_of_the_file(read: Callable[[Any], tuple[Dataset, ...]]) -> None:
    datasets = read({"z": entry(), "a": entry(annotation="other.json")})

    assert [dataset.name for dataset in datasets] == ["z", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": "gone"}, '"root" is "gone": there is no such folder here'),
        ({"root": 7}, '"root" is 7; write a text'),
        ({"annotation": "gone.json"}, '"annotation" is "gone.json": there is no such file here'),
        ({"annotation": "media"}, '"annotation" is "media": is a folder'),
        ({"annotation": "a\0b"}, '"annotation" holds a NUL'),
        ({"modality": "sound"}, '"modality" is "sound"; write "image" or "video"'),
        ({"task": "Naturel"}, "\"task\": there is no domain 'Naturel'; use one of: Code"),
        ({"task": "Video & Temporal"}, '"task" is for videos, but "modality" is "image"'),
        ({"length": -1}, '"length" is -1; write a number from 0'),
        ({"length": True}, '"length" is true; write a whole number'),
        ({"sample_count": "many"}, '"sample_count" is "many"; write a whole number'),
        ({"sample_count": 1.5}, '"sample_count" is 1.5; write a whole number'),
        ({"extra": float("nan")}, '"extra" holds NaN'),
    ],
)
def test_a_bad_value_is_refused_with_dataset_key_and_remedy(
    problems: Callable[[Any], list[str]], change: JsonObject, message: str
) -> None:
    (problem,) = problems({"d": entry(**change)})

    assert problem.startswith(f'dataset "d": {message}')


def test_every_problem_is_reported_at_once(problems: Callable[[Any], list[str]]) -> None:
    found = problems({"a": entry(root="gone", length="x"), "b": [], "c": {"root": "media"}, " ": entry()})

    assert [problem.split(";")[0] for problem in found] == [
        'dataset "a": "root" is "gone": there is no such folder here',
        'dataset "a": "length" is "x"',
        'dataset "b": is a list, not an object',
        'dataset "c": lacks "annotation", "modality"',
        'dataset " ": "name" is " "',
    ]


def test_datasets_that_would_be_captioned_twice_are_refused(problems: Callable[[Any], list[str]]) -> None:
    (problem,) = problems({"a": entry(), "b": entry(annotation="./ADE20k.json")})

    assert problem.endswith('is that of "a" as well; leave it in one of them')


def test_datasets_that_would_write_the_same_files_are_refused(problems: Callable[[Any], list[str]]) -> None:
    (problem,) = problems({"a b": entry(), "a/b": entry(annotation="other.json")})

    assert problem == 'dataset "a/b": gets the same caption files as "a b"; rename one'


def test_a_dataset_or_key_given_twice_is_refused(problems: Callable[[Any], list[str]]) -> None:
    text = json.dumps(entry())
    twice = f'{{"root": "media", {text[1:]}'

    assert problems(f'{{"a": {text}, "a": {text}}}') == [
        '"a" is given twice; give each dataset a name of its own'
    ]
    assert problems(f'{{"a": {twice}}}') == ['dataset "a": "root" is given twice; keep one of them']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1:1: not JSON: Expecting value; fix the metafile there"),
        ('{\n"a": }', "2:6: not JSON: Expecting value; fix the metafile there"),
        ("[]", "is a list; write an object"),
        ("{}", "names no dataset; write"),
        ("[" * 100_000, "cannot be decoded: maximum recursion depth"),
        ('{"a": ' + "1" * 5000 + "}", "cannot be decoded: Exceeds the limit"),
    ],
)
def test_what_is_no_metafile_is_refused_with_its_place(
    problems: Callable[[Any], list[str]], content: str, message: str
) -> None:
    (problem,) = problems(content)

    assert problem.startswith(message)


def test_a_metafile_that_cannot_be_opened_or_is_not_utf_8_is_refused(metafile: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        read_metafile(metafile, RESOLVE)
    metafile.write_bytes('{"ä": 1}'.encode("latin-1"))
    with pytest.raises(PlanError, match="byte 2 is not UTF-8"):
        read_metafile(metafile, RESOLVE)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["root", "annotation", "length", "sample_count", "task", "modality", "more"])
VALUES = ANY_JSON | st.sampled_from(["media", "ADE20k.json", "other.json", "image", "video", "Natural", 5])
METAFILES = st.dictionaries(st.text(max_size=5), st.dictionaries(KEYS, VALUES) | ANY_JSON, max_size=4)
quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refuse(metafile: Path) -> None:
    """Datasets, or messages that begin with the place."""
    messages: list[str] = []
    try:
        assert read_metafile(metafile, RESOLVE)
    except PlanError as error:
        messages = str(error).split("\n")
    assert all(message.startswith(f"{metafile}:") for message in messages)


@quietly
@given(content=st.binary(max_size=200))
def test_any_bytes_give_datasets_or_a_message_with_its_place(metafile: Path, content: bytes) -> None:
    metafile.write_bytes(content)

    read_or_refuse(metafile)


@quietly
@given(content=METAFILES)
def test_any_values_give_datasets_or_a_message_with_its_place(metafile: Path, content: JsonObject) -> None:
    metafile.write_text(json.dumps(content))

    read_or_refuse(metafile)


@quietly
@given(cut=st.integers(0, len(EXAMPLE)), noise=st.binary(max_size=4))
def test_a_damaged_example_gives_datasets_or_a_message_with_its_place(
    metafile: Path, cut: int, noise: bytes
) -> None:
    metafile.write_bytes(EXAMPLE[:cut].encode() + noise + EXAMPLE[cut + len(noise) :].encode())

    read_or_refuse(metafile)
