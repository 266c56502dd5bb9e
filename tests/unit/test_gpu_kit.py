"""That the GPU kit's parts come together again, and that its models have the size of the public ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from time import monotonic

import pytest
from click.testing import CliRunner
from numpy.random import default_rng

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.records import Stage
from tests.benchmarks.gpu import unpack
from tests.benchmarks.gpu.__main__ import main
from tests.benchmarks.gpu.architectures import ARCHITECTURES, write_model
from tests.benchmarks.gpu.card import CardWatch
from tests.benchmarks.gpu.lengths import write_domains
from tests.benchmarks.gpu.pack import REQUIREMENTS, pack, pinned
from tests.benchmarks.gpu.rehearse import MACHINE
from tests.benchmarks.gpu.tuning import engine_args
from tests.benchmarks.gpu.vocabulary import VOCABULARY

_PART_BYTES = 4096


class Kit:
    """Two wheels in parts, as `pack` leaves them, and calls that carry some of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.wheels = [folder / "a-1-py3-none-any.whl", folder / "b-2-py3-none-any.whl"]
        for number, wheel in enumerate(self.wheels):
            wheel.write_bytes(bytes(range(number, 200)) * 40)
        self.parts = pack(self.wheels, folder, _PART_BYTES)

    def call(self, names: Sequence[str]) -> int:
        """What the call that carries these parts ends with."""
        carried = self.folder / f"call{len(list(self.folder.glob('call*')))}"
        carried.mkdir()
        for name in (unpack.MANIFEST, *names):
            (carried / name).write_bytes((self.folder / name).read_bytes())
        return unpack.main([str(carried), str(self.store)])


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_parts_carried_one_by_one_in_any_order_give_the_wheels_back(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [part.name for part in kit.parts]
    assert len(names) > 2

    codes = [kit.call([name]) for name in reversed(names)]

    assert codes == [4] * (len(names) - 1) + [0]
    wheels = Path(capsys.readouterr().out.strip())
    assert {path.name: path.read_bytes() for path in wheels.iterdir()} == {
        path.name: path.read_bytes() for path in kit.wheels
    }


def test_it_says_exactly_which_parts_are_missing(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = [part.name for part in kit.parts]

    assert kit.call([first]) == 4

    said = capsys.readouterr().err
    assert f"missing: {', '.join(others)}, of {len(kit.parts)} parts" in said


@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: b"x" + content[1:]])
def test_a_damaged_part_is_refused_by_its_name_and_not_put_aside(
    kit: Kit, capsys: pytest.CaptureFixture[str], harm: Callable[[bytes], bytes]
) -> None:
    path = kit.folder / kit.parts[1].name
    path.write_bytes(harm(path.read_bytes()))

    assert kit.call([kit.parts[0].name, path.name]) == 2
    assert path.name in capsys.readouterr().err
    assert not list(kit.store.rglob(path.name))


def test_parts_of_another_packing_are_not_mixed_in(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    kit.call([kit.parts[0].name])
    kit.wheels[0].write_bytes(b"a newer one")
    newer = pack(kit.wheels, kit.folder, _PART_BYTES)

    assert kit.call([part.name for part in newer[1:]]) == 4
    assert f"missing: {newer[0].name}," in capsys.readouterr().err


def test_the_same_wheels_give_the_same_parts(kit: Kit) -> None:
    before = (kit.folder / unpack.MANIFEST).read_text()
    for wheel in kit.wheels:
        wheel.write_bytes(wheel.read_bytes())

    pack(kit.wheels, kit.folder, _PART_BYTES)

    assert (kit.folder / unpack.MANIFEST).read_text() == before


def test_the_kit_brings_nothing_that_the_machine_has() -> None:
    brought = [name for name, _ in pinned(REQUIREMENTS)]

    assert len(set(brought)) == len(brought)
    assert not set(brought) & set(MACHINE.read_text().split())


#: As the index files of the public checkpoints count them.
@pytest.mark.parametrize(("name", "parameters"), [("7b", 8_292_166_656), ("72b", 73_410_777_344)])
def test_a_model_is_as_large_as_the_public_one(name: str, parameters: int, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    write_model(tmp_path, ARCHITECTURES[name])

    with torch.device("meta"):
        built = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(tmp_path))
    assert sum(weight.numel() for weight in built.parameters()) == parameters


def test_every_token_has_a_text_and_what_is_written_costs_the_same_when_it_is_read(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    write_model(tmp_path, ARCHITECTURES["tiny"])

    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert len(tokenizer) == VOCABULARY
    assert all(tokenizer.batch_decode([[number] for number in range(VOCABULARY)]))
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|image_pad|>", "<|video_pad|>"]) == [
        151645,
        151655,
        151656,
    ]
    written = [int(number) for number in default_rng(0).integers(10_000, 151_643, 256)]
    assert tokenizer(tokenizer.decode(written))["input_ids"] == written


def test_all_texts_are_equally_long_and_judges_may_finish(tmp_path: Path) -> None:
    write_domains(tmp_path, {Stage.PERCEIVE: 11, Stage.REASON: 12, Stage.SUMMARIZE: 13})

    ours, theirs = load_catalogue(tmp_path).domains, load_catalogue().domains
    assert [domain.name for domain in ours] == [domain.name for domain in theirs]
    tokens = {(agent.stage, agent.sampling.max_tokens) for domain in ours for agent in domain.agents}
    texts = {(Stage.PERCEIVE, 11), (Stage.REASON, 12), (Stage.SUMMARIZE, 13)}
    assert tokens - {(Stage.SCORE, 256)} == texts


def test_tunings_add_up_and_what_is_given_by_hand_wins() -> None:
    found = engine_args(
        {"load_format": "dummy"},
        ["vision-graphs", "vision-compiled", "long-steps"],
        {"max_num_batched_tokens": 4096},
    )

    assert found == {
        "load_format": "dummy",
        "compilation_config": {"cudagraph_mm_encoder": True, "compile_mm_encoder": True},
        "max_num_batched_tokens": 4096,
    }


def test_eight_bit_weights_are_random_and_finite_and_all_others_stay() -> None:
    import torch

    from tests.benchmarks.gpu.random_weights import fill

    small, large = torch.zeros(64, 64, dtype=torch.float8_e4m3fn).t(), torch.zeros(8)

    fill([small, large])

    values = small.float()
    assert values.isfinite().all()
    assert values.abs().max() < 2
    assert len(values.unique()) > 50
    assert not large.any()


def test_the_card_is_watched_as_nvidia_smi_tells_and_complaints_are_passed_over() -> None:
    watch = CardWatch()
    watch.read(StringIO("NVIDIA H200, 40, 1024\nUnable to determine\nNVIDIA H200, 60, 2048\n"))

    assert watch.name == "NVIDIA H200"
    assert watch.busy_share(0, monotonic()) == pytest.approx(0.5)
    assert watch.busy_share(0, watch.looks[0].at - 1) is None
    assert watch.peak_gib() == 2


def test_without_a_gpu_it_says_so_and_names_the_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    answer = CliRunner().invoke(main, [])

    assert answer.exit_code == 2
    assert "--tiny" in answer.stderr
