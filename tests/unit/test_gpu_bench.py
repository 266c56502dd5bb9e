"""The GPU benchmark: its arguments parse, and its models have the size of the public ones."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.benchmarks.gpu.__main__ import main
from tests.benchmarks.gpu.model import ARCHITECTURES, VOCABULARY, write_model


def test_the_arguments_of_the_rehearsal_parse() -> None:
    arguments = ["--tiny", "--images", "0", "--videos", "0", "--in-flight", "8", "--bare"]
    more = ["--rival-samples", "2", "--engine-args", '{"max_num_seqs": 64}']

    given = main.make_context("gpu", [*arguments, *more]).params

    assert (given["tiny"], given["in_flight"], given["engine_args"]) == (True, 8, {"max_num_seqs": 64})


def test_without_a_gpu_it_names_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    answer = CliRunner().invoke(main, [])

    assert answer.exit_code == 2
    assert "--tiny" in answer.stderr


#: As the index files of the public checkpoints count them.
@pytest.mark.parametrize(("name", "parameters"), [("7b", 8_292_166_656), ("72b", 73_410_777_344)])
def test_a_model_is_as_large_as_the_public_one(name: str, parameters: int, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    write_model(tmp_path, ARCHITECTURES[name])

    with torch.device("meta"):
        built = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(tmp_path))
    assert sum(weight.numel() for weight in built.parameters()) == parameters
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    written = list(range(10_000, 10_256))
    assert len(tokenizer) == VOCABULARY
    assert tokenizer(tokenizer.decode(written))["input_ids"] == written
