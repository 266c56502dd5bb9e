from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.errors import PlanError
from producer.reading import annotations as reader
from producer.reading.annotations import Entry, read_entries

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
        expected = [_told_of(path, fresh, entry) for entry in read_entries(fresh, 0, len(entries))]
        assert list(read_entries(path, start, stop)) == expected[start:stop]


def _told_of(path: Path, other: Path, entry: Entry) -> Entry:
    return Entry(entry.index, entry.value, entry.problem and entry.problem.replace(str(other), str(path)))


@pytest.mark.parametrize("form", FORMS)
def test_a_later_shard_does_not_read_what_precedes_it(tmp_path: Path, form: object) -> None:
    assert callable(form)
    path = tmp_path / "set.json"
    path.write_bytes(form([json.dumps({"id": number}).encode() for number in range(5_000)]))
    assert sum(1 for _ in read_entries(path, 0, 5_000)) == 5_000
    before = path.stat()

    # Only a reader that goes straight to its entries does not fall over this.
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
