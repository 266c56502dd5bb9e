"""The GPU benchmark without a GPU: its arguments, its answers' lengths and its last table."""

import statistics

import pytest
from click.testing import CliRunner
from rich.console import Console

from capflow_tasks.records import MediaRef, Modality, Request, Sampling
from tests.benchmarks.claims import Row
from tests.benchmarks.gpu.__main__ import main
from tests.benchmarks.gpu.summary import summary
from tests.benchmarks.journal import Turn, mean_requests
from tests.benchmarks.lengths import with_length


def test_the_arguments_of_the_rehearsal_parse() -> None:
    arguments = ["--tiny", "--images", "8", "--videos", "3", "--in-flight", "8", "--rival", "bare"]
    more = ["--rival-samples", "2", "--engine-args", '{"max_num_seqs": 64}']

    given = main.make_context("gpu", [*arguments, *more]).params

    assert (given["tiny"], given["in_flight"], given["engine_args"]) == (True, 8, {"max_num_seqs": 64})
    assert given["rivals"] == ("bare",)


def test_without_a_gpu_it_names_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    answer = CliRunner().invoke(main, [])

    assert answer.exit_code == 2
    assert "--tiny" in answer.stderr


def request(number: int, **options: object) -> Request:
    media = (MediaRef(Modality.IMAGE, f"/media/{number}.png"),)
    return Request("Be brief.", media, "What is it?", Sampling(max_tokens=4096), **options)  # type: ignore[arg-type]


def test_answers_differ_in_length_as_asked_and_are_the_same_for_every_contender() -> None:
    lengths = [with_length(request(number), 180, 600).sampling.max_tokens for number in range(2000)]
    assert statistics.median(lengths) == pytest.approx(180, rel=0.1)
    assert statistics.quantiles(lengths, n=20)[-1] == pytest.approx(600, rel=0.15)
    assert lengths[:9] == [with_length(request(n), 180, 600).sampling.max_tokens for n in range(9)]


@pytest.mark.parametrize("options", [{"choices": ("A", "B")}, {"schema": {"type": "object"}}])
def test_an_answer_that_ends_by_itself_is_not_cut(options: dict[str, object]) -> None:
    assert with_length(request(0, **options), 180, 600) == request(0, **options)


def test_the_requests_of_all_engines_are_averaged_over_the_time_that_is_measured() -> None:
    first, second = (Turn(0.0, 6, 1), Turn(6.0, 0, 1)), (Turn(4.0, 2, 2),)
    # from 2 to 10: 4 s with six requests of the first engine, 6 s with two of the second
    assert mean_requests([*first, *second], 2.0, 10.0) == (4 * 6 + 6 * 2) / 8


def test_the_last_table_has_the_published_figures_beside_the_measured() -> None:
    measured: dict[str, float | str] = {
        "72b_images_per_hour": 3000.0,
        "72b_image_over_bare": 0.96,
        "72b_videos_per_hour": "failed",
    }
    console = Console(width=120, record=True)
    console.print(summary([Row(claim, number, "", "", None) for claim, number in measured.items()], "72b"))
    lines = [line.split("│")[1:4] for line in console.export_text().splitlines() if "│" in line]
    figures = {name.strip(): [figure.strip() for figure in found] for name, *found in lines}
    assert figures["fleet, per hour"] == ["3,000", "-"]
    assert figures["scripts with 72B on one H200, as published, per hour"] == ["2,542", "245"]
    assert figures["bare engine, per hour"] == ["3,125", "-"]
