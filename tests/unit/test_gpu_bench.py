"""The GPU benchmark: the arguments of its rehearsal parse, and without a GPU it names the rehearsal."""

import pytest
from click.testing import CliRunner

from tests.benchmarks.gpu.__main__ import main


def test_the_arguments_of_the_rehearsal_parse() -> None:
    arguments = ["--tiny", "--images", "8", "--videos", "3", "--in-flight", "8", "--bare"]
    more = ["--rival-samples", "2", "--engine-args", '{"max_num_seqs": 64}']

    given = main.make_context("gpu", [*arguments, *more]).params

    assert (given["tiny"], given["in_flight"], given["engine_args"]) == (True, 8, {"max_num_seqs": 64})


def test_without_a_gpu_it_names_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    answer = CliRunner().invoke(main, [])

    assert answer.exit_code == 2
    assert "--tiny" in answer.stderr
