"""One run of the real command and a real worker over damaged, odd and plentiful pictures."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from tests.datasets import draw_picture, read_lines, write_plan
from tests.e2e.conftest import Cli
from tests.fuzz.pictures import damaged, encoded, photographs, with_odd_metadata

pytestmark = pytest.mark.e2e


def test_only_what_is_damaged_fails_and_doing_what_the_errors_say_works(quick_cli: Cli) -> None:
    media = quick_cli.folder / "media"
    media.mkdir()
    (media / "flipped.png").write_bytes(next(damaged("PNG", "one bit flipped", 1)))
    (media / "lost.jpg").write_bytes(next(damaged("JPEG, baseline", "512 bytes zero", 1)))
    odd = next(content for name, _, content in with_odd_metadata(1) if name == "PNG")
    (media / "odd.png").write_bytes(odd)
    (media / normalize("NFC", "café.jpg")).write_bytes(encoded(next(photographs(1)), "JPEG, baseline"))
    for number in range(5):
        draw_picture(media / f"{number}.png", number)
    entries = [
        {"id": "flipped", "image": "flipped.png"},
        {"id": "lost", "image": "lost.jpg"},
        {"id": "odd", "image": "odd.png"},
        {"id": "name", "image": normalize("NFD", "café.jpg")},
        {"id": "five", "images": [f"{number}.png" for number in range(5)]},
    ]
    plan = write_plan(quick_cli.folder, entries)
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.loading_engine:build",
        "TEST_LOADED_MEDIA": str(quick_cli.folder / "loaded.jsonl"),
    }

    answer = quick_cli.run("capflow", "caption", plan, "--output", "out")

    assert answer.returncode == 1, answer.stderr + quick_cli.worker_log[-4000:]
    failures = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.failed.jsonl")
    assert {failed["id"]: failed["error"]["kind"] for failed in failures} == {
        "flipped": "media_corrupt",
        "lost": "media_corrupt",
        "five": "request_refused",
    }
    assert "CAPFLOW_MAX_IMAGES=5" in failures[-1]["error"]["message"]
    records = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["id"] for record in records] == ["odd", "name"]

    quick_cli.environment |= {"CAPFLOW_MAX_IMAGES": "5"}
    quick_cli.run("capflow", "retry", plan, "--kind", "request_refused")

    records = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["id"] for record in records] == ["odd", "name", "five"]
