"""Where NeMo Curator's QwenVL goes wrong, and ours does not."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest

from capflow_tasks.curator import qwen_vl
from capflow_tasks.curator.frames import CLIP_COLOURS, EVEN_COLOURS, Colours, normalise
from capflow_tasks.curator.qwen_vl import QwenVL, download_model_from_hf, has_all_weights

HEAD = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


def video(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "multi_modal_data": {"video": "frames"}}


def model_that_says(answer: Callable[[str], str], **arguments: Any) -> QwenVL:
    """Return a model whose engine answers by a function of the prompt."""

    def generate(inputs: list[dict[str, Any]], **_: Any) -> list[Mock]:
        return [Mock(outputs=[Mock(text=answer(item["prompt"]))]) for item in inputs]

    model = QwenVL("models", "qwen", 4, **{"stage2_prompt_text": "Refine: ", **arguments})
    model.model = Mock()
    model.model.generate.side_effect = generate
    return model


def asked(model: QwenVL, call: int) -> list[dict[str, Any]]:
    """Return what the engine was given in one of its calls."""
    inputs: list[dict[str, Any]] = model.model.generate.call_args_list[call].args[0]
    return inputs


@pytest.mark.parametrize(
    "caption",
    [
        r"C:\Users\new folder",
        r"\1 \3 \g<0> \g<nobody> \n \\",
        "\\",
        "a line\nand another",
        "3 men walk",
        "user_prompt",
        "",
    ],
)
@pytest.mark.parametrize("stage2_prompt", ["Refine: ", "9. Refine: ", "\\1", "0"])
def test_any_caption_and_any_prompt_reach_stage_two_unchanged(caption: str, stage2_prompt: str) -> None:
    model = model_that_says(lambda prompt: caption, stage2_prompt_text=stage2_prompt)
    model.generate([video(f"{HEAD}first\nuser_prompt\nlast{TAIL}")], generate_stage2_caption=True)
    assert asked(model, 1)[0]["prompt"] == f"{HEAD}first\n{stage2_prompt}{caption}\nlast{TAIL}"


def test_the_callers_inputs_stay_as_they_are() -> None:
    model = model_that_says(lambda prompt: "said")
    frames = np.full((4, 28, 28, 3), 7, np.uint8)
    videos = [video("user_prompt"), {"prompt": "user_prompt", "multi_modal_data": {"video": frames}}]
    before = copy.deepcopy(videos)
    model.generate(videos, generate_stage2_caption=True)
    assert videos[0] == before[0]
    assert videos[1]["prompt"] == "user_prompt"
    assert videos[1]["multi_modal_data"]["video"] is frames
    assert (frames == 7).all()


@pytest.mark.parametrize("stage2_prompt", [None, ""])
def test_a_missing_stage_two_prompt_is_the_usual_one(stage2_prompt: str | None) -> None:
    model = model_that_says(lambda prompt: "said", stage2_prompt_text=stage2_prompt)
    model.generate([video("user_prompt")], generate_stage2_caption=True)
    assert asked(model, 1)[0]["prompt"] == "Please refine this caption: said"


def test_without_the_placeholder_stage_two_replaces_what_the_user_says_of_the_video() -> None:
    model = model_that_says(lambda prompt: r"A \d caption")
    model.generate([video(f"{HEAD}What happens?{TAIL}")], generate_stage2_caption=True)
    assert asked(model, 1)[0]["prompt"] == HEAD + r"Refine: A \d caption" + TAIL


def test_with_no_place_for_it_stage_two_is_refused_and_not_a_silent_repetition() -> None:
    model = model_that_says(lambda prompt: "said")
    with pytest.raises(ValueError, match=r"write user_prompt where it belongs in 'Describe\.'"):
        model.generate([video("Describe.")], generate_stage2_caption=True)
    captions = model.generate(
        [video("user_prompt"), video("Describe.")], generate_stage2_caption=True, on_error="skip"
    )
    assert captions == ["said", None]


@pytest.mark.parametrize("bad", [{0}, {3}, {7}, {0, 1, 6}, set(range(8))])
@pytest.mark.parametrize("has_stage2", [False, True])
def test_skipped_videos_are_none_and_the_others_keep_their_captions(bad: set[int], has_stage2: bool) -> None:
    def answer(prompt: str) -> str:
        number = int(re.findall(r"\d+", prompt)[0])
        if number in bad:
            raise RuntimeError("bad video")
        return f"caption of {number}"

    model = model_that_says(answer)
    videos = [video(f"{number} user_prompt") for number in range(8)]
    captions = model.generate(videos, has_stage2, batch_size=5, on_error="skip")
    assert captions == [None if number in bad else f"caption of {number}" for number in range(8)]


def test_a_video_that_fails_in_stage_two_does_not_cost_the_others_stage_one_again() -> None:
    def answer(prompt: str) -> str:
        if "Refine: caption of 2" in prompt:
            raise RuntimeError("bad video")
        return f"caption of {prompt[0]}"

    model = model_that_says(answer)
    videos = [video(f"{number} user_prompt") for number in range(4)]
    captions = model.generate(videos, generate_stage2_caption=True, on_error="skip")
    assert captions == ["caption of 0", "caption of 1", None, "caption of 3"]
    assert [len(call.args[0]) for call in model.model.generate.call_args_list] == [4, 4, 2, 2, 1, 1]


def test_a_dead_engine_is_an_error_even_when_videos_may_be_skipped() -> None:
    class EngineDeadError(Exception):
        """Has the name of vLLM's."""

    model = QwenVL("models", "qwen", 4)
    model.model = Mock()
    model.model.generate.side_effect = EngineDeadError("the engine core died")
    with pytest.raises(EngineDeadError):
        model.generate([video("a"), video("b")], on_error="skip")
    assert model.model.generate.call_count == 1


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_input_without_its_video_is_not_captioned_from_the_prompt_alone(on_error: Any) -> None:
    model = model_that_says(lambda prompt: "said")
    empty = {"prompt": "What happens?", "multi_modal_data": {"video": None}}
    if on_error == "raise":
        with pytest.raises(ValueError, match=r"no video, only a prompt: 'What happens\?'"):
            model.generate([empty], on_error="raise")
        model.model.generate.assert_not_called()
    else:
        assert model.generate([empty, video("a")], on_error="skip") == [None, "said"]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        QwenVL("models", "qwen", 4).generate([video("a")])
    model = model_that_says(lambda prompt: "said")
    with pytest.raises(ValueError, match="on_error"):
        model.generate([video("a")], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        model.generate([video("a")], batch_size=0)


class Engine:
    """Stands for vLLM's LLM, which normalises on the device or not; says "said"."""

    def __init__(self, is_normalising: bool) -> None:
        self.model_config = SimpleNamespace(multimodal_config=SimpleNamespace())
        if is_normalising:  # vLLM < 0.29 has no such field
            self.model_config.multimodal_config.mm_device_do_normalize = True
        self.asked: list[dict[str, Any]] = []

    def generate(self, inputs: list[dict[str, Any]], **_: Any) -> list[Mock]:
        self.asked = inputs
        return [Mock(outputs=[Mock(text="said")]) for _ in inputs]


def sent(frames: Any, variant: str = "qwen", is_normalising: bool = False, **options: Any) -> dict[str, Any]:
    """Return what vLLM is given for frames."""
    model = QwenVL("models", variant, 4, **options)
    model.model = Engine(is_normalising)
    model.generate([{"prompt": "a", "multi_modal_data": {"video": frames}}])
    (asked,) = model.model.asked
    found: dict[str, Any] = asked
    return found


FRAMES = np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), np.uint8)
FORMS: dict[str, Callable[[Colours], Any]] = {
    "bytes": lambda colours: FRAMES,
    "bytes, RGB second": lambda colours: np.ascontiguousarray(FRAMES.transpose(0, 3, 1, 2)),
    "floats": lambda colours: FRAMES.astype(np.float32),
    "short floats": lambda colours: FRAMES.astype(np.float16),
    "normalised": lambda colours: normalise(FRAMES, colours),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_preprocessing", [False, True])
def test_an_engine_that_does_not_normalise_is_given_normalised_frames(
    form: str, is_preprocessing: bool
) -> None:
    given = FORMS[form](CLIP_COLOURS)
    ready, metadata = sent(given, model_does_preprocess=is_preprocessing)["multi_modal_data"]["video"]
    if is_preprocessing:
        np.testing.assert_array_equal(ready, FRAMES)
    else:
        wanted = (FRAMES / 255 - np.array(CLIP_COLOURS[0])) / np.array(CLIP_COLOURS[1])
        assert ready.dtype == np.float32
        np.testing.assert_allclose(ready.transpose(0, 2, 3, 1), wanted, atol=1e-5)
    assert (metadata["total_num_frames"], metadata["fps"]) == (4, 2.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("variant", "colours"), [("qwen", CLIP_COLOURS), ("qwen2.5", CLIP_COLOURS), ("qwen3", EVEN_COLOURS)]
)
def test_an_engine_that_normalises_is_given_raw_frames(form: str, variant: str, colours: Colours) -> None:
    given = sent(FORMS[form](colours), variant, is_normalising=True)
    assert given["multi_modal_data"]["video"][0].dtype == np.uint8
    np.testing.assert_array_equal(given["multi_modal_data"]["video"][0], FRAMES)
    # vLLM 0.29 would obey a request that asks for normalisation, and do it twice
    assert not {"do_rescale", "do_normalize"} & given.get("mm_processor_kwargs", {}).keys()


def test_a_dark_clip_of_floats_is_not_taken_for_a_normalised_one() -> None:
    dark = np.full((2, 28, 28, 3), 3, np.float32)
    assert (sent(dark, is_normalising=True)["multi_modal_data"]["video"][0] == 3).all()


def test_a_bright_normalised_clip_is_not_taken_for_floats_of_0_to_255() -> None:
    bright = np.full((2, 28, 28, 3), 240, np.uint8)
    given = sent(normalise(bright, CLIP_COLOURS), is_normalising=True)
    assert (given["multi_modal_data"]["video"][0] == 240).all()


@pytest.mark.parametrize(
    ("variant", "shape", "limit"),
    [
        ("qwen", (4, 30, 28, 3), 768 * 28**2),
        ("qwen", (4, 1120, 1120, 3), 768 * 28**2),
        ("qwen2.5", (256, 560, 560, 3), 192 * 28**2),
        ("qwen3", (4, 28, 28, 3), 4 * 768 * 32**2),
    ],
)
def test_frames_that_do_not_fit_are_resized_by_the_processor(
    variant: str, shape: tuple[int, ...], limit: int
) -> None:
    options = sent(np.zeros(shape, np.uint8), variant)["mm_processor_kwargs"]
    assert options["do_resize"]
    assert options["size"]["longest_edge"] == limit


def test_metadata_survives_normalisation() -> None:
    model = model_that_says(lambda prompt: "said")
    metadata = {"fps": 30.0}
    model.generate(
        [{"prompt": "a", "multi_modal_data": {"video": (np.zeros((4, 28, 28, 3), np.uint8), metadata)}}]
    )
    assert asked(model, 0)[0]["multi_modal_data"]["video"][1] is metadata


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"weights")
    return folder


def index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


SHARDS = [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]


def test_a_download_is_complete_only_with_every_shard(tmp_path: Path) -> None:
    assert not has_all_weights(fill(tmp_path / "none"))
    assert has_all_weights(fill(tmp_path / "single", "model.safetensors"))
    for count in range(1, 5):
        assert not has_all_weights(fill(tmp_path / str(count), *SHARDS[:count]))
    assert has_all_weights(fill(tmp_path / "all", *SHARDS))


def test_the_index_has_the_last_word_on_what_is_complete(tmp_path: Path) -> None:
    weight_map = {f"layer {number}": name for number, name in enumerate(SHARDS)}
    folder = fill(tmp_path, *SHARDS[:4])
    index(folder, json.dumps({"weight_map": weight_map}))
    assert not has_all_weights(folder)
    fill(folder, SHARDS[4])
    assert has_all_weights(folder)
    for broken in ('{"weight_map": {', "{}", "[]", '{"weight_map": []}', '{"weight_map": {}}'):
        index(folder, broken)
        assert not has_all_weights(folder)


def test_one_shard_of_five_is_downloaded_again_and_five_are_not(tmp_path: Path) -> None:
    folder = fill(tmp_path / qwen_vl._QWEN2_5_VL_MODEL_ID, SHARDS[0])
    with patch("capflow_tasks.curator.qwen_vl.download_model_from_hf") as download:
        QwenVL.download_weights_on_node(str(tmp_path))
        assert download.call_count == 1
        fill(folder, *SHARDS)
        QwenVL.download_weights_on_node(str(tmp_path))
        assert download.call_count == 1
        QwenVL.download_weights_on_node(str(tmp_path), "qwen3")
    assert download.call_args.kwargs["model_id"] == "Qwen/Qwen3-VL-8B-Instruct"


def test_a_download_asks_the_hub_for_the_revision_or_for_one_file(tmp_path: Path) -> None:
    with (
        patch("huggingface_hub.snapshot_download") as whole,
        patch("huggingface_hub.hf_hub_download") as one,
    ):
        download_model_from_hf("a/b", tmp_path, revision="1234567", ignore_patterns=["*.bin"])
        download_model_from_hf("a/b", tmp_path, filename="config.json")
        with pytest.raises(ValueError, match="exclude each other"):
            download_model_from_hf("a/b", tmp_path, filename="config.json", ignore_patterns=["*.bin"])
    whole.assert_called_once_with("a/b", revision="1234567", local_dir=tmp_path, ignore_patterns=["*.bin"])
    one.assert_called_once_with("a/b", "config.json", revision=None, local_dir=tmp_path)
