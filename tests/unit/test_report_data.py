"""What the report's page is given: scripts that are safe, chunks that are whole, pictures or reasons."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.records import Modality
from producer.report.gallery import CHUNK, Gallery, Size, as_script
from producer.report.pictures import Originals, PictureTask, draw, film_sheet, film_strip
from producer.report.report import POLICY, check_replaceable
from producer.writing.whole import whole_folder
from tests.datasets import draw_picture
from tests.reports import SIZE, a_sample, an_overview, write_report

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u2029 <!-- '\" \\ \u202e \N{GRINNING FACE} \ud800"


def value_of(script: str) -> tuple[str, Any]:
    """What the script hands to the page, read as a browser reads it: two string literals of JSON."""
    matched = re.fullmatch(r'capflow\.data\.take\(("[^"]*"), JSON\.parse\(("(?:[^"\\]|\\.)*")\)\);\n', script)
    assert matched, script
    name, text = map(json.loads, matched.groups())
    return name, json.loads(text)


def read(folder: Path, name: str) -> Any:
    return value_of((folder / "data" / f"{name}.js").read_text("ascii"))[1]


def test_data_come_through_a_script_as_they_were() -> None:
    value = {HOSTILE: [HOSTILE, 1, None, 0.5], "__proto__": {"polluted": True}}

    assert value_of(as_script("index", value)) == ("index", value)


def test_a_script_holds_nothing_that_could_end_it() -> None:
    script = as_script("index", HOSTILE)

    assert script.isascii()
    assert not re.search(r"[<>&']", script)


def test_samples_come_in_chunks_and_the_index_knows_all_of_them(tmp_path: Path) -> None:
    samples = [
        a_sample(number, f"caption {number}", overall=number % 3 + 1, domain="AB"[number % 2])
        for number in range(CHUNK + 5)
    ]

    write_report(tmp_path, samples, Size(10**6, 0, 320, 1))

    index = read(tmp_path, "index")
    assert index["chunk"] == CHUNK
    assert index["domain_names"] == ["A", "B"]
    assert index["domains"] == [number % 2 for number in range(CHUNK + 5)]
    assert index["grades"] == [number % 3 + 1 for number in range(CHUNK + 5)]
    assert index["dimensions"] == {
        "factual_accuracy": "2" * (CHUNK + 5),
        "professionalism": "3" * (CHUNK + 5),
    }
    assert len(set(re.findall("." * 16, index["keys"]))) == CHUNK + 5
    texts = [read(tmp_path, f"text-{number}") for number in (0, 1)]
    assert [len(chunk) for chunk in texts] == [CHUNK, 5]
    assert texts[1][0] == [f"set[{CHUNK}]", f"{CHUNK}.png", f"caption {CHUNK}"]
    assert [sample["caption"] for sample in read(tmp_path, "samples-1")] == [
        f"caption {number}" for number in range(CHUNK, CHUNK + 5)
    ]
    assert not (tmp_path / "data" / "text-2.js").exists()


def test_samples_get_pictures_as_chosen_and_a_file_that_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    for number in (0, 2, 3):
        draw_picture(tmp_path / "media" / f"{number}.png", number, (640, 480))
    samples = [a_sample(number, root=str(tmp_path / "media")) for number in range(4)]
    samples[3] = replace(samples[3], has_pictures=False)

    write_report(tmp_path / "report", samples, Size(10, thumbnails=3, picture_size=320, processes=1))

    report = tmp_path / "report"
    assert read(report, "index")["has_small"] == [1, 0, 1, 0]
    shown = [sample["pictures"] for sample in read(report, "samples-0")]
    assert shown[0][0]["file"] == "large/0/0-0.jpg"
    assert shown[1][0]["file"] is None
    assert "1.png does not exist" in shown[1][0]["reason"]
    assert shown[3] == []
    with Image.open(report / "large/0/0-0.jpg") as large, Image.open(report / "small/0/2.jpg") as small:
        assert large.size == (320, 240)
        assert small.size == (256, 192)


def test_grades_agents_models_and_kinds_are_known_of_each_sample(tmp_path: Path) -> None:
    samples = [a_sample(0, None), a_sample(1), a_sample(2, overall=None)]

    write_report(tmp_path, samples, Size(10, 0, 320, 1))

    index = read(tmp_path, "index")
    assert index["dimensions"] == {"factual_accuracy": "020", "professionalism": "030"}
    assert [index["kind_names"][kind] for kind in index["kinds"]] == ["media_missing", None, None]
    agents = [[index["agent_names"][agent] for agent in listed] for listed in index["agents"]]
    assert agents[0] == ["router", "natural"]
    assert agents[1] == ["router", "natural", "general_summary", "judge"]
    assert index["models"] == [[0], [0], [0]]
    judge = read(tmp_path, "samples-0")[1]["said"][-1]
    assert (judge["agent"], judge["grades"]["overall"], judge["errors"]) == ("judge", 3, [])


def test_a_reason_is_told_without_the_folders_of_its_path(tmp_path: Path) -> None:
    sample = a_sample(0, None)
    assert sample.sample.failure
    failure = replace(sample.sample.failure, message="/a/very/long/way/to/7.png does not exist.")

    write_report(tmp_path, [replace(sample, sample=replace(sample.sample, failure=failure))])

    assert read(tmp_path, "text-0")[0][2] == "media_missing: …/7.png does not exist."
    assert read(tmp_path, "samples-0")[0]["failure"]["message"] == failure.message


@pytest.mark.parametrize("originals", list(Originals))
def test_the_original_is_linked_copied_or_left_out(tmp_path: Path, originals: Originals) -> None:
    source = tmp_path / "media" / "0.png"
    draw_picture(source, 0, (640, 480))
    sample = a_sample(0, root=str(tmp_path / "media"))

    write_report(tmp_path / "report", [sample], replace(SIZE, originals=originals))

    address = read(tmp_path / "report", "samples-0")[0]["pictures"][0]["original"]
    copy = "large/0/0-0-original.png"
    assert address == {"none": None, "link": source.as_uri(), "copy": copy}[originals]
    if originals is Originals.COPY:
        assert (tmp_path / "report" / copy).read_bytes() == source.read_bytes()


def test_the_prompts_that_were_asked_are_in_the_report_and_no_others(tmp_path: Path) -> None:
    router = load_catalogue().router
    sample = a_sample(0)
    results = (replace(sample.sample.results[0], workflow=router.digest), *sample.sample.results[1:])
    gallery = Gallery(tmp_path, SIZE)
    gallery.write([replace(sample, sample=replace(sample.sample, results=results))], lambda done: None)

    gallery.write_prompts(load_catalogue())

    assert read(tmp_path, "prompts") == {
        router.digest: {"system": load_catalogue().system, "prompt": router.prompt}
    }


def test_a_path_that_leaves_the_root_gives_no_picture(tmp_path: Path) -> None:
    draw_picture(tmp_path / "secret.png", 1)
    (tmp_path / "media").mkdir()
    task = PictureTask(
        Modality.IMAGE, str(tmp_path / "media"), "../secret.png", tmp_path / "large.jpg", None, 320
    )

    assert "outside" in (draw(task).reason or "")
    assert not (tmp_path / "large.jpg").exists()


def test_frames_stand_side_by_side_on_a_strip_and_the_first_is_large_on_a_sheet() -> None:
    frames = [Image.new("RGB", (200, 100), (50 * number, 0, 0)) for number in range(5)]

    strip, sheet = film_strip(frames), film_sheet(frames)

    assert strip.size == (5 * 192 + 4 * 4, 96)
    assert [strip.getpixel((number * 196 + 9, 9)) for number in range(5)] == [
        (50 * number, 0, 0) for number in range(5)
    ]
    assert sheet.size == (200, 100 + 2 * (4 + 48))
    assert [sheet.getpixel(place) for place in ((50, 50), (9, 110), (150, 110), (9, 170), (150, 170))] == [
        (50 * number, 0, 0) for number in range(5)
    ]


def test_the_page_lets_nothing_in_and_escapes_names(tmp_path: Path) -> None:
    overview = an_overview(0, "<img src=x onerror=alert(1)>")
    page = write_report(tmp_path, [], overview=overview).read_text("utf-8")

    assert f'content="{POLICY}"'.replace("'", "&#39;") in page
    assert POLICY.startswith("default-src 'none'")
    assert "unsafe" not in POLICY
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    report = tmp_path / "report"
    for text in ("first", "second"):
        check_replaceable(report)
        with whole_folder(report) as aside:
            for name in ("static", "data"):
                (aside / name).mkdir()
            (aside / "index.html").write_text(text)
    assert (report / "index.html").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(UserError, match="name another folder"):
        check_replaceable(tmp_path / "thesis")


def test_a_report_that_does_not_come_to_its_end_leaves_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("first")

    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "report"):
        raise ZeroDivisionError

    assert (tmp_path / "report" / "index.html").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
