"""Fuzzes everything that reads a user's file.

    pip install atheris
    python -m tests.fuzz.readers annotation -max_total_time=120

The rule: a file is read, or there is a CapflowError each line of which names the file and, after a semicolon,
the remedy. The first argument is one of the TARGETS, all others are libFuzzer's (`-help=1` lists them). A
file that breaks the rule is kept as `crash-*` in the working directory; as last argument it is read again.

Nothing else in the project needs atheris, and pytest does not collect this.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import atheris
import pyarrow as pa
import pyarrow.parquet as pq

with atheris.instrument_imports(include=["producer", "capflow_tasks"]):
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.entries import media_of
    from capflow_tasks.errors import CapflowError, SampleError
    from capflow_tasks.media.paths import head_of, resolve_media
    from producer.cost import read_prices
    from producer.filtering import CaptionFilter
    from producer.planning.listings import SourceOrder
    from producer.planning.metafile import read_metafile
    from producer.planning.sources import read_sources
    from producer.reading.annotations import read_entries
    from producer.reading.caption_files import Criteria, Minimums, Rubrics
    from producer.reading.plan import read_plan

CATALOGUE = load_catalogue()
#: More entries than any input can hold.
_END = 10_000

_ENTRY = {
    "id": 1,
    "image": "a.jpg",
    "task": "Natural",
    "conversations": [{"from": "gpt", "value": "é\\u0000"}],
}
_LINE = {
    "data_name": "set",
    "json_url": "file",
    "root": ".",
    "task": "Natural",
    "modality": "image",
    "start_idx": 0,
    "end_idx": 12,
    "shard_index": 0,
    "num_shards": 1,
    "assign_rank": 0,
    "total": 12,
    "processed": 0,
    "remain": 12,
}
_DATASET = {
    "root": ".",
    "annotation": "file",
    "modality": "image",
    "length": 3,
    "sample_count": 2,
    "task": "",
}
_COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "caption": "a", "bbox": [1, 2, 3, 4], "category_id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
}
_SCORES = {"factual_accuracy": 3, "professionalism": 1}
_POTTERY = """\
name: Pottery
aliases: [Ceramics]
description: A pot, bowl or tile.
budget: {max_pixels: 501760, fps: 0.5}
agents:
  visual_guideline:
  potter:
    stage: perceive
    prompt: |
      Describe body, form $domain and glaze.
    sees: all
    sampling: {temperature: 1.5, max_tokens: 99}
  general_summary:
  judge:
    dimensions: {glaze: {description: d, grades: {1: a, 2: b, 3: c}}}
"""
_PRICES = """\
gpus: {A800: 2.00}
models:
  gpt: {prompt: 2.00, cached: 0.50, completion: 8.00}
  "*": {gpu: A800, gpus_per_worker: 4}
"""
_CAPTION = {**_ENTRY, "caption": "A cat.", "scores": _SCORES, "overall": 3, "model": "m"}


def read_annotation(path: Path) -> None:
    for entry in read_entries(path, 0, _END):
        if entry.problem is not None:
            _check(entry.problem, path)


def read_source(path: Path) -> None:
    order = SourceOrder(path.parent / "listings")
    for dataset in read_sources([str(path)], order, CATALOGUE.resolve, lambda _: None).datasets:
        for entry in read_entries(Path(dataset.annotation), 0, dataset.length or 0):
            assert entry.problem is None or "; " in entry.problem


def read_container(path: Path) -> None:
    """List a tar or Parquet file, and read the first bytes of the media that it is said to hold."""
    order = SourceOrder(path.parent / "listings")
    for dataset in read_sources([str(path)], order, CATALOGUE.resolve, lambda _: None).datasets:
        for entry in read_entries(Path(dataset.annotation), 0, min(dataset.length or 0, 100)):
            with suppress(SampleError):
                for _, medium in media_of(entry.value or {}, dataset.modality):
                    head_of(resolve_media(dataset.root, medium))


def _tar() -> bytes:
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, held in (
            ("d/a.png", b"\x89PNG"),
            ("d/a.json", b'{"n": 1}'),
            ("é" * 120 + ".jpg", b"\xff\xd8\xff"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(held)
            tar.addfile(member, BytesIO(held))
    return content.getvalue()


def _parquet(**columns: list[object]) -> bytes:
    content = BytesIO()
    pq.write_table(pa.table(columns), content, row_group_size=2)
    return content.getvalue()


def _arrow(**columns: list[object]) -> bytes:
    content, table = BytesIO(), pa.table(columns)
    with pa.ipc.new_stream(content, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return content.getvalue()


def read_captions(path: Path) -> None:
    minimums = Minimums(overall=3, each_dimension=3)
    list(CaptionFilter(Criteria(Rubrics(CATALOGUE), minimums), path.parent).run(path.parent))


#: Too long or too deep for some part of a reader.
JSON_EXTREMES = ["[" * 1000, '[{"a": ' * 500, '{"a": ' * 999, "9" * 5000]
YAML_EXTREMES = ["[" * 300, "a: " + "{a: " * 300, "- " * 350, "a: " + "9" * 4500]

#: Which file is written, what reads it, and files to begin with.
TARGETS: dict[str, tuple[str, Callable[[Path], object], list[str] | list[bytes]]] = {
    "plan": (
        "plan.jsonl",
        lambda path: read_plan(path, CATALOGUE.resolve),
        [json.dumps(_LINE), json.dumps(_LINE, indent=1), json.dumps({**_LINE, "end_idx": -1}) + "\n{}\n[]"],
    ),
    "metafile": (
        "meta.json",
        lambda path: read_metafile(path, CATALOGUE.resolve),
        [json.dumps({"set": _DATASET}), json.dumps({"a": _DATASET, "a b": _DATASET}, indent=1)],
    ),
    "annotation": (
        "set.json",
        read_annotation,
        [json.dumps([_ENTRY, 1, None]), json.dumps([_ENTRY], indent=1), f"{json.dumps(_ENTRY)}\n\n[]\n"],
    ),
    "captions": ("Rank0_node0_set.jsonl", read_captions, [f"{json.dumps(_CAPTION)}\n" * 2, '{"scores": {}}']),
    "table": (
        "set.csv",
        read_source,
        ["image,n\na.png,1\n", 'image\tn\n"a\tb.png"\t', '["a.png", 1]', json.dumps(_COCO), "a.png\nb.png\n"],
    ),
    "tar": ("set.tar", read_container, [_tar()]),
    "parquet": (
        "set.parquet",
        read_container,
        [
            _parquet(image=[b"\x89PNG", None, b""], n=[1, 2, 3]),
            _parquet(images=[[{"bytes": b"\xff\xd8\xff", "path": "a.jpg"}], [], None], text=["a", "b", "c"]),
            _parquet(image=["a.png", "b.png", None]),
        ],
    ),
    "arrow": ("data.arrow", read_container, [_arrow(image=[b"\x89PNG", None, b""], n=[1, 2, 3])]),
    "domain": ("pottery.yaml", lambda path: load_catalogue(path.parent), [_POTTERY]),
    "prices": ("prices.yaml", read_prices, [_PRICES]),
}

#: Pieces that a fuzzer takes long to come upon by itself.
WORDS = (
    *(f'"{key}": ' for sample in (_ENTRY, _LINE, _DATASET, _CAPTION) for key in sample),
    *("null", "true", "[]", "{}", "NaN", "-Infinity", "1e999", "-1", "1.5", '"video"'),
    *('"\\ud800"', '"\\u0000"', "\ufeff", "\r\n", ",", "]", "}"),
    *("stage: ", "sees: ", "media: ", "windows: ", "sampling: ", "answer: ", "!!python/none", "*a", "&a"),
    *(
        "2001-99-99",
        "0b",
        "1_",
        "!!binary a",
        "!!timestamp 1",
        "!!int a",
        "!!float a",
        "<<: ",
        "? ",
        "$",
        "%",
    ),
)


def _check(message: str, path: Path) -> None:
    for line in message.splitlines():
        assert str(path) in line, f"names no place: {line}"
        assert "; " in line, f"names no remedy: {line}"


def fuzz(name: str, flags: list[str]) -> None:
    file_name, read, seeds = TARGETS[name]
    # In memory where there is such a folder: a file is written for each of thousands of inputs a second.
    shared_memory = Path("/dev/shm")
    parent = shared_memory if shared_memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent) as folder, tempfile.TemporaryDirectory() as corpus:
        path = Path(folder, file_name)
        Path(folder, "file").touch()
        extremes = YAML_EXTREMES if file_name.endswith(".yaml") else JSON_EXTREMES
        for number, seed in enumerate([*seeds, *extremes]):
            content = seed if isinstance(seed, bytes) else seed.encode()
            Path(corpus, f"seed-{number}").write_bytes(content)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))

        def one_input(content: bytes) -> None:
            path.write_bytes(content)
            try:
                read(path)
            except CapflowError as error:
                _check(str(error), path)

        # With a file to read again, nothing else is read.
        corpora = [] if any(not flag.startswith("-") for flag in flags) else [corpus]
        atheris.Setup([sys.argv[0], f"-dict={words}", *flags, *corpora], one_input)
        atheris.Fuzz()


def _escaped(word: str) -> str:
    """As libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"name what to fuzz: {', '.join(TARGETS)}")
    fuzz(sys.argv[1], sys.argv[2:])
