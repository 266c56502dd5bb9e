"""The report's page in a real browser, opened from disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from capflow_tasks.records import Stage
from capflow_tasks.store.figures import FailureKind
from deploy.browser import emulate_screen, open_file
from producer.reading.marks import Mark, Marks
from producer.report.gallery import Size
from producer.report.pictures import Originals
from tests.conftest import Eventually
from tests.datasets import draw_picture, film_video
from tests.reports import SIZE, a_sample, an_overview, write_report

pytestmark = pytest.mark.e2e

ATTACK = "</script><img src=x onerror=\"document.title='taken'\">\u2028\u2029 \u202egnp \u05e9\u05dc\u05d5"
COUNT = 120


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of two domains and three grades; 7 is hostile, 8 failed, 9 is a video, 10 was repaired."""
    folder = tmp_path_factory.mktemp("report")
    media = folder / "media"
    for number in range(3):
        draw_picture(media / f"{number}.png", number, (300, 900) if number == 2 else (640, 480))
    film_video(media / "clip.mp4", codec="libvpx-vp9")
    samples = [
        a_sample(
            number,
            f"Number {number} shows {'a harbour' if number % 2 else 'a table'}.",
            overall=number % 3 + 1,
            domain="Natural" if number % 4 else "UI & Interaction",
            root=str(media),
            errors=["no red van"] if number == 0 else [],
        )
        for number in range(COUNT)
    ]
    samples[7] = a_sample(7, ATTACK, domain=ATTACK, root=str(media), image=f"{ATTACK}.png")
    samples[8] = a_sample(8, None, root=str(media))
    samples[9] = a_sample(
        9, "A clip.", domain="Video & Temporal", root=str(media), image="", video="clip.mp4"
    )
    refused = {"faults": {"loop": "keep at keep at"}, "finish_reason": "length"}
    samples[10] = a_sample(
        10,
        "A repaired lamp.",
        overall=2,
        root=str(media),
        guard={"repairs": {"meta_opening": ATTACK}, "attempts": [refused]},
        errors=["the lamp is red", ATTACK],
    )
    size = replace(SIZE, originals=Originals.LINK)
    return write_report(folder / "report", samples, size, an_overview(COUNT, ATTACK))


class Reader:
    """Somebody who reads the report."""

    def __init__(self, browser: webdriver.Chrome, eventually: Eventually) -> None:
        self.browser = browser
        self.eventually = eventually

    def open(self, page: Path, fragment: str = "") -> None:
        open_file(self.browser, page, fragment)
        self.eventually(self._assert_is_ready, 20)

    def _assert_is_ready(self) -> None:
        assert "Loading" not in self.text("#count")
        assert "Searching" not in self.text("#count")

    def text(self, selector: str) -> str:
        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def ask(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def numbers(self) -> list[int]:
        """The samples whose cards are on the page."""
        script = "return [...document.querySelectorAll('.card')].map((card) => Number(card.dataset.number))"
        numbers: list[int] = self.ask(script)
        return numbers

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def choose(self, name: str, value: str) -> None:
        script = (
            "const field = document.querySelector(`[name=${arguments[0]}]`); field.value = arguments[1];"
            "field.dispatchEvent(new Event('change', {bubbles: true}))"
        )
        self.ask(script, name, value)

    def wait_for(self, expected: object, look_up: Any) -> None:
        def matches() -> None:
            assert look_up() == expected

        self.eventually(matches, 20)

    def open_sample(self) -> str:
        return self.text("#detail-title") if self.ask("return document.querySelector('dialog').open") else ""


def console(browser: webdriver.Chrome) -> list[Any]:
    """What the browser has complained of since it was last asked."""
    complaints: list[Any] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return complaints


@pytest.fixture
def reader(browser: webdriver.Chrome, eventually: Eventually) -> Iterator[Reader]:
    """One whose page says nothing in the console: no error, nothing the policy refused."""
    emulate_screen(browser, 1280, 900)
    console(browser)
    yield Reader(browser, eventually)
    assert console(browser) == []


def test_filters_narrow_the_gallery_and_stand_in_the_address(reader: Reader, page: Path) -> None:
    reader.open(page, "#order=plan")
    assert reader.text("#count") == "120 samples"
    assert reader.numbers() == list(range(48))

    reader.choose("grade", "1")
    reader.choose("domain", "UI & Interaction")
    reader.wait_for("10 of 120 samples", lambda: reader.text("#count"))
    assert reader.numbers() == list(range(0, 120, 12))

    reader.open(page, reader.ask("return location.hash"))
    assert reader.numbers() == list(range(0, 120, 12))
    reader.open(page, "#state=failed")
    assert reader.numbers() == [8]


def test_what_is_bad_comes_first_unless_asked_otherwise(reader: Reader, page: Path) -> None:
    reader.open(page)
    assert reader.numbers()[:4] == [8, 0, 3, 6]
    assert reader.ask("return document.forms.filters.elements.order.value") == "worst"

    reader.choose("order", "plan")
    reader.wait_for(list(range(48)), reader.numbers)
    assert "order=plan" in reader.ask("return location.hash")


@pytest.mark.parametrize(
    ("fragment", "numbers"),
    [
        ("kind=media_missing", [8]),
        ("kind=none&text=harbour 119", [119]),
        ("dimension=factual_accuracy&grade=2&text=harbour 119", [119]),
        ("dimension=lowest&grade=3", []),
        ("dimension=factual_accuracy&grade=none", [8]),
        ("agent=judge&text=lamp", [10]),
        ("model=some-model&dataset=set&text=lamp", [10]),
        ("confidence=0.5-0.8", []),
        ("confidence=0.8-1&text=lamp", [10]),
        ("mark=any", []),
    ],
)
def test_an_address_filters_by_all_that_is_known(
    reader: Reader, page: Path, fragment: str, numbers: list[int]
) -> None:
    reader.open(page, f"#{fragment}")

    assert reader.numbers() == numbers


def test_a_chart_leads_to_what_it_counts(reader: Reader, tmp_path: Path) -> None:
    overview = replace(
        an_overview(3),
        grades={"overall": {1: 1, 2: 0, 3: 1}},
        failures=[FailureKind("media_missing", 1, (Stage.PERCEIVE,), False, "/a/b/c/2.png does not exist.")],
    )
    samples = [a_sample(0, overall=1), a_sample(1), a_sample(2, None)]
    page = write_report(tmp_path / "report", samples, overview=overview)
    reader.open(page)
    assert "…/2.png does not exist." in reader.text(".charts")

    reader.browser.find_element(By.LINK_TEXT, "media missing").click()
    reader.wait_for([2], reader.numbers)
    reader.browser.find_element(By.CSS_SELECTOR, ".charts a .grade-3").click()
    reader.wait_for([1], reader.numbers)
    assert reader.ask("return location.hash") == "#grade=3"
    reader.browser.find_element(By.LINK_TEXT, "show all").click()
    reader.wait_for([2, 0, 1], reader.numbers)


def test_captions_are_marked_by_key_and_the_marks_leave_and_come_back_as_a_file(
    reader: Reader, page: Path, tmp_path: Path
) -> None:
    reader.open(page, "#order=plan")
    reader.press("j")
    reader.press("g")
    reader.wait_for("good", lambda: reader.text("[data-number='0'] .mark"))
    reader.open(page, "#order=plan&sample=1")
    reader.wait_for("set[1]", reader.open_sample)
    reader.press("b")
    reader.press("n")
    reader.press("no harbour")
    reader.press(Keys.ENTER)
    reader.press("j")
    reader.wait_for("set[2]", reader.open_sample)
    reader.press("u")

    reader.open(page, "#mark=bad")
    assert reader.numbers() == [1]
    said = "3 marks: 1 good, 1 bad, 1 unsure. The judge agrees on 0 of 2 that are good or bad (0 %)."
    assert reader.text("#marking-said") == said

    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    reader.browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    reader.ask("document.getElementById('marking').open = true")
    reader.browser.find_element(By.ID, "export-marks").click()
    reader.wait_for(1, lambda: len(list(tmp_path.glob("marks-*.json"))))
    (path,) = tmp_path.glob("marks-*.json")
    marks = Marks(path)
    assert marks.of(["0.png"], "Number 0 shows a table.") is Mark.GOOD
    assert marks.of(["0.png"], "Number 0 shows a chair.") is None
    (bad,) = marks.marked(Mark.BAD).values()
    assert (bad.place, bad.note) == (("set", 1), "no harbour")

    reader.ask("localStorage.clear()")
    reader.open(page)
    assert reader.text("#marking-said").startswith("none yet")
    reader.browser.find_element(By.ID, "import-marks").send_keys(str(path))
    reader.wait_for(said, lambda: reader.text("#marking-said"))
    reader.ask("localStorage.clear()")


def test_what_the_guard_did_is_on_the_card_filters_it_and_stands_with_the_sample(
    reader: Reader, page: Path
) -> None:
    reader.open(page)
    reader.choose("guard", "asked again: loop")
    reader.wait_for("1 of 120 samples", lambda: reader.text("#count"))
    assert reader.numbers() == [10]
    assert {"asked again", "repaired", "2 errors"} <= set(reader.text(".badges").splitlines())
    reader.open(page, "#guard=none&text=lamp")
    assert reader.numbers() == []

    reader.open(page, "#sample=10")
    reader.wait_for("set[10]", reader.open_sample)
    shown = reader.text("#detail-body")
    assert "asked again: loop (general summary)" in shown
    assert "repaired: meta opening (general summary)" in shown
    assert "the lamp is red" in shown
    assert reader.browser.title != "taken"


def test_a_search_looks_at_captions_and_files_of_all_samples(reader: Reader, page: Path) -> None:
    reader.open(page)
    reader.press("/")
    reader.press("HARBOUR 119")

    reader.wait_for("1 of 120 samples", lambda: reader.text("#count"))
    assert reader.numbers() == [119]
    reader.open(page, "#text=clip.mp4")
    assert reader.numbers() == [9]
    reader.open(page, "#text=media_missing")
    assert reader.numbers() == [8]


def test_pages_follow_one_another_and_the_way_back_leads_back(reader: Reader, page: Path) -> None:
    reader.open(page, "#order=plan")
    for first, last in ((48, 96), (96, 120)):
        reader.ask("document.querySelector('[aria-label=\"Next page\"]').click()")
        reader.wait_for(list(range(first, last)), reader.numbers)
    reader.browser.back()
    reader.wait_for(list(range(48, 96)), reader.numbers)


def test_what_models_and_datasets_say_is_text_whatever_it_is(reader: Reader, page: Path) -> None:
    reader.open(page, "#sample=7")
    reader.wait_for("set[7]", reader.open_sample)

    assert reader.ask("return document.querySelector('.caption').textContent") == ATTACK
    assert reader.ask("return document.querySelector('h1').textContent") == ATTACK
    assert reader.ask("return document.querySelector('figcaption[dir]').textContent") == f"{ATTACK}.png"
    assert ATTACK in reader.ask(
        "return [...document.forms.filters.elements.domain.options].map((o) => o.value)"
    )
    assert reader.ask("return document.querySelectorAll('img[src=\"x\"]').length") == 0
    assert "taken" not in reader.browser.title.split("onerror")[0]
    assert reader.ask("return getComputedStyle(document.querySelector('.caption')).unicodeBidi") == "isolate"


def test_markup_in_a_script_is_refused_by_the_browser_itself(browser: webdriver.Chrome, page: Path) -> None:
    open_file(browser, page)
    refused = browser.execute_script(
        "try { document.body.innerHTML = '<b>1</b>'; return 'taken'; } catch (error) { return error.name; }"
    )
    assert "TrustedHTML" in str(console(browser))
    assert refused == "TypeError"


def test_everything_can_be_done_by_keyboard(reader: Reader, page: Path) -> None:
    reader.open(page, "#order=plan")
    focused = "return document.activeElement.dataset.number"

    reader.press("j")
    reader.press("j")
    assert reader.ask(focused) == "1"
    reader.press("k")
    assert reader.ask(focused) == "0"
    assert reader.ask("return document.activeElement.matches(':focus-visible')")
    reader.press(Keys.ENTER)
    reader.wait_for("set[0]", reader.open_sample)
    reader.press(Keys.ARROW_RIGHT)
    reader.wait_for("set[1]", reader.open_sample)
    reader.press("j")
    reader.wait_for("set[2]", reader.open_sample)
    reader.press("k")
    reader.wait_for("set[1]", reader.open_sample)
    reader.press(Keys.ESCAPE)
    reader.wait_for("", reader.open_sample)
    reader.wait_for("1", lambda: reader.ask(focused))
    reader.press("/")
    assert reader.ask("return document.activeElement.id") == "search"
    reader.press("j")
    assert reader.ask("return document.activeElement.value") == "j"


def test_stepping_goes_over_the_edge_of_a_page(reader: Reader, page: Path) -> None:
    reader.open(page, "#order=plan&sample=47")
    reader.wait_for("set[47]", reader.open_sample)
    reader.press("j")
    reader.wait_for("set[48]", reader.open_sample)
    reader.press(Keys.ESCAPE)

    reader.wait_for("48", lambda: reader.ask("return document.activeElement.dataset.number"))
    assert reader.numbers()[0] == 48


def test_all_that_can_be_used_has_a_name_and_pictures_have_words(reader: Reader, page: Path) -> None:
    reader.open(page, "#sample=0")
    reader.wait_for("set[0]", reader.open_sample)

    nameless = reader.ask(
        "return [...document.querySelectorAll('a, button, input, select, [role], nav, dialog')]"
        ".filter((element) => !(element.ariaLabel || element.textContent.trim() || element.labels?.length"
        " || element.getAttribute('aria-labelledby') || element.querySelector('img[alt]:not([alt=\"\"])')))"
        ".map((element) => element.outerHTML)"
    )
    assert nameless == []
    assert reader.ask("return document.querySelectorAll('img:not([alt])').length") == 0
    assert reader.ask("return document.documentElement.lang") == "en"


def test_a_sample_is_large_beside_its_caption_with_all_that_is_known(reader: Reader, page: Path) -> None:
    reader.open(page, "#sample=0")
    reader.wait_for("set[0]", reader.open_sample)
    reader.wait_for(320, lambda: reader.ask("return document.querySelector('.pictures img').naturalWidth"))

    picture, caption = (
        reader.browser.find_element(By.CSS_SELECTOR, selector).rect
        for selector in (".pictures img", ".caption")
    )
    assert caption["x"] >= picture["x"] + picture["width"]
    reader.ask("for (const each of document.querySelectorAll('#detail-body details')) each.open = true")
    reader.wait_for(True, lambda: "has changed since" in reader.text(".prompt pre"))
    shown = reader.text("#detail-body")
    for known in (
        "Number 0 shows a table.",
        "report of 0",
        "some-model",
        "d1gest",
        "gpu@host",
        "90 %",
        "1 bad",
        "no red van",
        "factual accuracy 2",
        "Its answer is the caption above.",
        "This prompt has changed since",
    ):
        assert known in shown


def test_a_video_is_a_film_strip_and_a_missing_file_is_a_reason(reader: Reader, page: Path) -> None:
    reader.open(page, "#order=plan")
    reader.wait_for(
        1, lambda: len(reader.browser.find_elements(By.CSS_SELECTOR, ".card[data-number='9'] .film"))
    )
    reader.open(page, "#sample=9")
    reader.wait_for("set[9]", reader.open_sample)
    assert "frames at 0:00.2, 0:00.6" in reader.text(".pictures")
    reader.ask("const film = document.querySelector('.pictures video'); film.muted = true; film.play()")
    reader.wait_for(True, lambda: reader.ask("return document.querySelector('video').currentTime > 0"))
    reader.open(page, "#sample=8")
    reader.wait_for("set[8]", reader.open_sample)
    assert "does not exist" in reader.text(".pictures")
    assert "Failed at perceive: media missing" in reader.text(".texts")


def test_pictures_of_any_shape_stay_in_frames_of_one_size(reader: Reader, page: Path) -> None:
    reader.open(page, "#order=plan")
    reader.wait_for(
        True, lambda: reader.ask("return document.querySelector('[data-number=\"2\"] img').complete")
    )

    heights = reader.ask(
        "return ['0', '2'].flatMap((number) => ['.thumb', '.thumb img'].map((part) =>"
        " document.querySelector(`[data-number='${number}'] ${part}`).getBoundingClientRect().height))"
    )
    assert max(heights) - min(heights) < 1


@pytest.mark.parametrize("fragment", ["", "#sample=0"])
def test_a_phone_shows_it_all_without_scrolling_sideways(reader: Reader, page: Path, fragment: str) -> None:
    emulate_screen(reader.browser, 390, 844, phone=True)
    reader.open(page, fragment)

    reader.wait_for("set[0]" if fragment else "", reader.open_sample)
    assert reader.ask("return document.documentElement.scrollWidth") <= 390
    body = "#detail-body" if fragment else "body"
    assert reader.ask("return document.querySelector(arguments[0]).scrollWidth", body) <= 390


def test_the_page_is_dark_for_those_who_like_it_dark(reader: Reader, page: Path) -> None:
    def brightness() -> float:
        colour = reader.ask("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3

    reader.open(page)
    assert brightness() > 200
    emulate_screen(reader.browser, 1280, 900, dark=True)
    assert brightness() < 50


def test_ten_thousand_samples_stay_quick(reader: Reader, tmp_path: Path) -> None:
    words = "the quay lies in grey light while a crane lifts boxes onto the ship and people wait " * 8
    samples = [a_sample(number, f"{words} {number}.", number % 3 + 1) for number in range(10_000)]
    page = write_report(
        tmp_path / "report", samples, Size(10_000, thumbnails=0, picture_size=320, processes=1)
    )

    reader.open(page)
    assert reader.text("#count") == "10,000 samples"
    seconds = reader.browser.execute_async_script(
        "const done = arguments[0], search = async (text) => (await capflow.filters.matching("
        "  { ...capflow.filters.asked(), text })).length;"
        "(async () => {"
        "  await search('warm'); const began = performance.now(); const found = await search('crane 9876');"
        "  const bad = { ...capflow.filters.asked(), dimension: 'lowest', grade: '2', agent: 'judge' };"
        "  const all = await capflow.filters.matching(bad);"
        "  done(found === 1 && all.length === 10000 ? (performance.now() - began) / 1000 : Infinity);"
        "})()"
    )
    assert seconds < 1
