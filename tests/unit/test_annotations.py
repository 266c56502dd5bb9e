from __future__ import annotations

import gzip
import itertools
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject
from producer.reading import annotations as reader
from producer.reading.annotations import Entry, read_entries

SAMPLES: list[JsonObject] = [{"id": index, "image": f"{index}.jpg"} for index in range(5)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "annotations.json"


def as_list(samples: list[JsonObject]) -> bytes:
    return json.dumps(samples).encode()


def as_lines(samples: list[JsonObject]) -> bytes:
    return "".join(f"{json.dumps(sample)}\n" for sample in samples).encode()


def until_refused(path: Path, end_idx: int) -> tuple[list[Entry], str]:
    """The entries that were yielded before the file was refused, and the reason."""
    entries: list[Entry] = []
    with pytest.raises(PlanError) as refused:
        entries.extend(read_entries(path, 0, end_idx))
    return entries, str(refused.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "content", [as_list(SAMPLES), as_lines(SAMPLES), json.dumps(SAMPLES, indent=2).encode()]
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf\r\n "])
def test_a_list_and_lines_are_distinguished_by_content_plain_or_gzip(
    tmp_path: Path, content: bytes, suffix: str, mark: bytes
) -> None:
    path = tmp_path / f"annotations.txt{suffix}"
    content = mark + content.replace(b"\n", b"\r\n")
    path.write_bytes(gzip.compress(content) if suffix else content)

    assert list(read_entries(path, 1, 4)) == [Entry(index, SAMPLES[index], None) for index in (1, 2, 3)]


@pytest.mark.parametrize("characters", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_size_of_the_window_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, characters: int, indent: int | None
) -> None:
    samples = [{"a": 12.5e-3, "b": '😀 \\u0000 "', "c": [True, None, -7]}, {"é": "x" * 200}, {}]
    text = json.dumps(samples, indent=indent)
    monkeypatch.setattr(reader, "CHUNK_CHARACTERS", characters)
    file.write_text(text)

    assert [entry.value for entry in read_entries(file, 0, 3)] == samples


@pytest.mark.parametrize("characters", [1, 5, 1000])
def test_a_number_or_word_cut_by_the_window_is_read_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    monkeypatch.setattr(reader, "CHUNK_CHARACTERS", characters)
    file.write_text('[12345678901234567890, 1.5e+10, true, {"a": -Infinity}, {"a": 1}]')

    reasons = [str(entry.problem).split(": entry ")[1].split(";")[0] for entry in read_entries(file, 0, 4)]

    assert reasons == [
        "0 is a number, not an object",
        "1 is a number, not an object",
        "2 is true or false, not an object",
        '3 cannot be stored: "a" holds NaN or an infinite number',
    ]


def test_numbers_text_and_the_order_of_keys_come_out_as_they_went_in(file: Path) -> None:
    text = '{"z": 123456789012345678901234567890, "a": 0.1, "m": 1.0, "ü": "\\ud83d\\ude00 日本"}'
    for content in (f"[{text}]", text):
        file.write_text(content, encoding="utf-8")
        (entry,) = read_entries(file, 0, 1)
        assert json.dumps(entry.value) == json.dumps(json.loads(text))
        assert entry.value is not None
        assert list(entry.value) == ["z", "a", "m", "ü"]


@pytest.mark.parametrize("form", [as_list, as_lines])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'"text"', 'is a string, not an object; write {"image": ...} or {"video": ...}'),
        (b"null", "is null, not an object"),
        (b"[1]", "is a list, not an object"),
        (
            b'{"image": "a\\u0000.jpg"}',
            'cannot be stored: "image" holds a NUL character (\\u0000); remove it',
        ),
        (b'{"q": [{"\\ud800": 1}]}', 'cannot be stored: "q" holds bytes that are not UTF-8, or half of a'),
        (b'{"image": "\xff.jpg"}', 'cannot be stored: "image" holds bytes that are not UTF-8'),
        (b'{"width": NaN}', 'cannot be stored: "width" holds NaN or an infinite number; write null'),
        (b'{"width": 1e999}', 'cannot be stored: "width" holds NaN or an infinite number'),
    ],
)
def test_an_entry_that_cannot_be_used_says_why_and_its_neighbours_go_on(
    file: Path, form: object, bad: bytes, reason: str
) -> None:
    separator, ends = (b",\n", (b"[", b"]")) if form is as_list else (b"\n", (b"", b""))
    file.write_bytes(ends[0] + separator.join([b'{"a": 0}', bad, b'{"a": 2}']) + ends[1])

    first, second, third = read_entries(file, 0, 3)

    assert (first.value, second.value, third.value) == ({"a": 0}, None, {"a": 2})
    assert str(second.problem).startswith(f"{file}:2: entry 1 {reason}")


def test_the_text_backslash_u0000_is_not_a_nul(file: Path) -> None:
    file.write_text(json.dumps([{"a": "\\u0000"}]))

    assert [entry.problem for entry in read_entries(file, 0, 1)] == [None]


def test_a_bad_line_is_only_its_own_problem(file: Path) -> None:
    file.write_bytes(b'{"a": 0}\n\n{"a": \n{"a": 2}\n' + b"[" * 9999 + b"\n" + b"9" * 9999 + b"\n{}")

    entries = list(read_entries(file, 0, 6))

    assert [entry.value for entry in entries] == [{"a": 0}, None, {"a": 2}, None, None, {}]
    assert entries[1].problem == f"{file}:3: entry 1 is not JSON at column 6: Expecting value; fix the line"
    assert str(entries[3].problem).startswith(f"{file}:5: entry 3 cannot be decoded: maximum recursion depth")
    assert str(entries[4].problem).startswith(f"{file}:6: entry 4 cannot be decoded: Exceeds the limit")


def test_an_overlong_line_or_entry_is_refused_before_it_fills_the_memory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "ENTRY_CHARACTERS", 100)
    monkeypatch.setattr(reader, "CHUNK_CHARACTERS", 10)
    file.write_text('{"a": 0}\n{"a": "' + "x" * 1000 + '"}\n{"a": 2}\n')
    first, second, third = read_entries(file, 0, 3)
    assert (first.value, third.value) == ({"a": 0}, {"a": 2})
    assert second.problem == f"{file}:2: entry 1 is longer than 100 characters; shorten it"

    file.write_text('[{"a": 0}, {"a": "' + "x" * 1000)
    entries, reason = until_refused(file, 2)
    assert len(entries) == 1
    assert reason.startswith(
        f"{file}:1:12: entry 1 is not JSON: longer than 100 characters, or a quote left open"
    )


@pytest.mark.parametrize(
    ("content", "count", "place_and_reason"),
    [
        (
            b'[{"a": 0},\n {"a": 1}\n {"a": 2}]',
            2,
            '3:2: entry 2 is not JSON: "," or "]" expected; fix the file',
        ),
        (b'[{"a": 0}, {"a": oops}]', 1, "1:18: entry 1 is not JSON: Expecting value"),
        (
            b'[{"a": 0},\n{"a": 1',
            1,
            "2:8: entry 1 is not JSON: the file ends inside the list; it is cut short",
        ),
        (b'[{"a": 0}', 1, "1:10: entry 1 is not JSON: the file ends inside the list"),
        (b"[", 0, "1:2: entry 0 is not JSON: the file ends inside the list"),
        (b'[{"a": "x', 0, "1:8: entry 0 is not JSON: Unterminated string"),
        (b'[{"a": "x\ny"}]', 0, "1:10: entry 0 is not JSON: Invalid control character"),
        (b"[" * 9999, 0, "1:2: entry 0 is not JSON: maximum recursion depth exceeded"),
        (b'[{"a": 0}, ' + b"9" * 9999 + b"]", 1, "1:12: entry 1 is not JSON: Exceeds the limit"),
    ],
)
def test_a_broken_list_gives_what_stands_before_the_place_it_names(
    file: Path, content: bytes, count: int, place_and_reason: str
) -> None:
    file.write_bytes(content)

    entries, reason = until_refused(file, 5)

    assert [entry.index for entry in entries] == list(range(count))
    assert reason.startswith(f"{file}:{place_and_reason}")


def test_what_follows_the_wanted_entries_is_not_read(file: Path) -> None:
    file.write_text('[{"a": 0}, oops')

    assert len(list(read_entries(file, 0, 1))) == 1
    assert list(read_entries(file, 3, 3)) == []


@pytest.mark.parametrize("content", [as_list(SAMPLES), as_lines(SAMPLES)])
def test_a_file_that_ends_too_early_says_how_many_entries_there_are(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    entries, reason = until_refused(file, 9)

    assert [entry.value for entry in entries] == SAMPLES
    assert reason == (
        f"{file}: has 5 entries, but the plan takes 0 up to 9; "
        'set "end_idx" to 5 at most, or complete the file'
    )


@pytest.mark.parametrize("content", [b"", b" \n", b"[]", b"[ ]"])
def test_an_empty_file_has_no_entries(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    assert until_refused(file, 1)[1].startswith(f"{file}: has 0 entries")


def test_one_object_over_several_lines_and_utf16_are_refused_as_a_whole(file: Path) -> None:
    file.write_text('{\n"images": []\n}')
    assert until_refused(file, 1)[1].startswith(f"{file}:1: object over several lines")

    file.write_bytes("[]".encode("utf-16"))
    assert until_refused(file, 1)[1] == f"{file}: is UTF-16; save it as UTF-8"


def test_a_file_that_is_gone_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    gone = tmp_path / "none.json"
    assert until_refused(gone, 1)[1] == (
        f"{gone}: cannot be read: No such file or directory; fix the file or its permissions"
    )
    packed = gzip.compress(as_lines(SAMPLES * 9999))
    damage = {"cut.gz": packed[:-9], "spoilt.gz": packed[:30] + b"\0" * 99 + packed[129:]}
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
        assert until_refused(tmp_path / name, 10**6)[1].startswith(f"{tmp_path / name}: cannot be read")


@pytest.mark.parametrize("form", [as_list, as_lines])
def test_memory_does_not_grow_with_the_file(file: Path, form: object) -> None:
    samples: list[JsonObject] = [{"id": index, "text": "x" * 3000} for index in range(5_000)]
    file.write_bytes(as_list(samples) if form is as_list else as_lines(samples))
    del samples

    tracemalloc.start()
    count = sum(1 for _ in read_entries(file, 0, 5_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 5_000
    assert peak < 4_000_000 < file.stat().st_size


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
lists = st.lists(values, max_size=5).map(json.dumps)
line_files = st.lists(values.map(json.dumps) | st.text(max_size=9), max_size=5).map("\n".join)
files = (lists | line_files).map(lambda text: text.encode(errors="replace")) | st.binary(max_size=60)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files, cut=st.integers(0, 90), junk=st.binary(max_size=2), characters=st.integers(1, 64))
def test_whatever_bytes_a_file_holds_each_entry_is_read_or_refused_by_name(
    tmp_path: Path, content: bytes, cut: int, junk: bytes, characters: int
) -> None:
    path = tmp_path / "fuzzed.json"
    path.write_bytes(content[:cut] + junk + content[cut:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "CHUNK_CHARACTERS", characters)
        entries, reason = until_refused(path, 50)

    assert reason.startswith(str(path))
    assert [entry.index for entry in entries] == list(range(len(entries)))
    for entry in entries:
        assert (entry.value is None) == (entry.problem is not None)
        json.dumps(entry.value, allow_nan=False, ensure_ascii=False).encode()
        (entry.problem or "").encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=4), data=st.data())
def test_a_list_means_what_the_standard_library_says_it_means(
    tmp_path: Path, samples: list[JsonObject], data: st.DataObject
) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(samples, indent=data.draw(st.sampled_from([None, 2]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "CHUNK_CHARACTERS", data.draw(st.integers(1, 40)))
        entries = list(read_entries(path, 0, len(samples)))

    assert len(entries) == len(samples)
    assert all(entry.value in (None, sample) for entry, sample in zip(entries, samples, strict=True))


# Later shards of a file


ENTRIES = [
    b'{"a": 0}',
    '{"é": "日本😀"}'.encode(),
    b'{"bad": "\xff\xed\xa0\x80"}',
    b'"no object"',
    b'{"a": "]},{["}',
    b'{"a": "\\ud83d\\ude00"}',
    b'{"a": "' + b"x" * 300 + b'"}',
]
FORMS = [
    lambda entries: b"[" + b", ".join(entries) + b"]",
    lambda entries: b"\r\n [\r\n" + b"\r\n,\r\n".join(entries) + b"]\n",
    lambda entries: b"\n".join(entries),
    lambda entries: b"\r\n \r\n".join([b"", *entries, b""]),
]
_numbers = itertools.count()


@pytest.fixture
def small_steps() -> Iterator[None]:
    """A place is kept for every other entry, and the file is read a few characters at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "PLACE_ENTRIES", 2)
        patch.setattr(reader, "CHUNK_CHARACTERS", 5)
        yield


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=12),
    form=st.sampled_from(FORMS),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    suffix=st.sampled_from([".json", ".json.gz"]),
    spans=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6),
)
def test_what_is_read_does_not_depend_on_what_was_read_before(
    tmp_path: Path,
    small_steps: None,
    entries: list[bytes],
    form: object,
    mark: bytes,
    suffix: str,
    spans: object,
) -> None:
    assert callable(form)
    assert isinstance(spans, list)
    content = mark + form(entries)
    path = tmp_path / f"{next(_numbers)}{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)

    for start, end in [*spans, (0, len(entries)), *spans]:
        stop = min(end, len(entries))
        fresh = path.with_name(f"{next(_numbers)}{suffix}")
        fresh.write_bytes(path.read_bytes())
        expected = [_as_in(path, fresh, entry) for entry in read_entries(fresh, 0, len(entries))]
        assert list(read_entries(path, start, stop)) == expected[start:stop]


def _as_in(path: Path, other: Path, entry: Entry) -> Entry:
    return Entry(entry.index, entry.value, entry.problem and entry.problem.replace(str(other), str(path)))


@pytest.mark.parametrize("form", FORMS)
def test_a_later_shard_does_not_read_what_precedes_it(tmp_path: Path, form: object) -> None:
    assert callable(form)
    path = tmp_path / "set.json"
    path.write_bytes(form([json.dumps({"id": number}).encode() for number in range(5_000)]))
    assert sum(1 for _ in read_entries(path, 0, 5_000)) == 5_000
    before = path.stat()

    # Breaks a reader that does not go straight to its entries.
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"?" * 10_000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert [entry.value for entry in read_entries(path, 4_000, 4_003)] == [
        {"id": number} for number in (4_000, 4_001, 4_002)
    ]


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"id": number} for number in range(3_000)]))
    assert sum(1 for _ in read_entries(path, 0, 3_000)) == 3_000

    path.write_text(json.dumps([{"number": number} for number in range(2_500)]))

    assert [entry.value for entry in read_entries(path, 2_000, 2_001)] == [{"number": 2_000}]
    with pytest.raises(PlanError, match="has 2500 entries, but the plan takes 2400 up to 3000"):
        list(read_entries(path, 2_400, 3_000))


def test_a_place_that_breaks_is_named_as_if_all_had_been_read(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text("[" + ",\n".join('{"a": 1}' for _ in range(2_500)) + ",\n{oops}]")
    assert sum(1 for _ in read_entries(path, 0, 2_500)) == 2_500

    with pytest.raises(PlanError) as refused:
        list(read_entries(path, 2_400, 3_000))

    assert str(refused.value).startswith(f"{path}:2501:2: entry 2500 is not JSON: Expecting property name")


@pytest.mark.parametrize("name", ["set.json", "set.jsonl.gz", "set"])
def test_gzip_is_told_by_content_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'[{"image": "a.png"}]'))

    (entry,) = read_entries(path, 0, 1)

    assert entry.value == {"image": "a.png"}


def test_plain_text_under_a_name_of_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_text('{"image": "a.png"}\n')

    (entry,) = read_entries(path, 0, 1)

    assert entry.value == {"image": "a.png"}


@pytest.mark.parametrize("content", ["image,caption\nok.jpg,x\n", "\nimage\tcaption\n\nok.jpg\tx\n"])
def test_a_table_is_named_as_what_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(content)

    with pytest.raises(PlanError, match=r"set\.json: is a table, not JSON; convert it"):
        list(read_entries(path, 0, 1))


def test_a_first_line_that_is_damaged_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('image, caption\n{"image": "a.png", "id": 1}\n')

    damaged, sound = read_entries(path, 0, 2)

    assert damaged.problem is not None
    assert sound.value == {"image": "a.png", "id": 1}
