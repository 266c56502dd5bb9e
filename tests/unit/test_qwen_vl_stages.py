"""The caption stages and the text model, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from capflow_tasks.curator.caption_stages import (
    CaptionEnhancementStage,
    CaptionGenerationStage,
    CaptionPreparationStage,
    Clip,
    Video,
    VideoTask,
    Window,
    prompt_for,
)
from capflow_tasks.curator.qwen_vl import QwenLM
from tests.clips import make_clip


def task_of(*clips: Clip) -> VideoTask:
    return VideoTask(Video(Path("film.mp4"), list(clips)))


def prepared(count: int) -> Clip:
    windows = [Window(number, number, {"qwen": {"prompt": f"{number}"}}) for number in range(count)]
    return Clip("clip.mp4", windows=windows)


def test_preparation_cuts_windows_and_asks_about_each(tmp_path: Path) -> None:
    path = Path(make_clip(tmp_path / "a.mp4", count=25))
    stage = CaptionPreparationStage(prompt_text="What?", window_size=10, remainder_threshold=6)
    with patch("capflow_tasks.curator.caption_stages.PromptFormatter") as formatter:
        stage.setup()
    formatter.assert_called_once_with("qwen", None)
    formatter.return_value.generate_inputs.side_effect = lambda prompt, video: {
        "prompt": prompt,
        "multi_modal_data": {"video": video},
    }
    clips = Clip(str(path)), Clip("gone", buffer=path.read_bytes()), Clip(str(tmp_path / "missing.mp4"))
    task = task_of(*clips)
    assert stage.process(task) is task
    for clip in clips[:2]:
        assert [(window.start_frame, window.end_frame) for window in clip.windows] == [(0, 9), (10, 24)]
        for window in clip.windows:
            assert window.llm_inputs["qwen"]["prompt"] == "What?"
            frames, metadata = window.llm_inputs["qwen"]["multi_modal_data"]["video"]
            assert frames.shape[0] == 4
            assert metadata["total_num_frames"] == window.end_frame - window.start_frame + 1
    assert "does not exist" in clips[2].errors["windows"]


def test_generation_captions_all_windows_of_a_task_in_one_call() -> None:
    stage = CaptionGenerationStage(caption_batch_size=2, generate_stage2_caption=True)
    stage.model = Mock()
    stage.model.generate.return_value = ["a", None, "c"]
    first, second, empty = prepared(2), prepared(2), Clip("empty.mp4")
    del second.windows[1].llm_inputs["qwen"]
    task = task_of(first, second, empty)
    assert stage.process(task) is task
    stage.model.generate.assert_called_once_with(
        [{"prompt": "0"}, {"prompt": "1"}, {"prompt": "0"}],
        generate_stage2_caption=True,
        batch_size=2,
        on_error="skip",
    )
    assert [window.caption for window in first.windows] == [{"qwen": "a"}, {}]
    assert [window.caption for window in second.windows] == [{"qwen": "c"}, {}]
    assert first.errors == {"window-1": "not captioned"}
    assert second.errors == {"window-1": "no_qwen_input"}
    assert empty.errors == {"windows": "empty"}
    assert not any(window.llm_inputs for clip in task.data.clips for window in clip.windows)


def test_generation_makes_the_model_of_its_fields() -> None:
    stage = CaptionGenerationStage(
        "models", "qwen3", stage2_prompt_text="Again: ", vllm_kwargs={"dtype": "half"}
    )
    with patch("capflow_tasks.curator.caption_stages.QwenVL") as made:
        stage.setup()
    made.assert_called_once_with(
        model_dir="models",
        model_variant="qwen3",
        caption_batch_size=16,
        fp8=False,
        max_output_tokens=512,
        model_does_preprocess=False,
        disable_mmcache=False,
        stage2_prompt_text="Again: ",
        verbose=False,
        dtype="half",
    )
    made.return_value.setup.assert_called_once_with()


def test_enhancement_rewrites_every_caption_in_batches() -> None:
    stage = CaptionEnhancementStage(prompt_text="Improve.", model_batch_size=2)
    stage.model = Mock()
    stage.model.generate.side_effect = lambda chats: [chat[1]["content"].upper() for chat in chats]
    clip = Clip("clip.mp4", windows=[Window(0, 0, caption={"qwen": text}) for text in "abc"])
    clip.windows.insert(1, Window(0, 0))
    stage.process(task_of(clip))
    assert [window.enhanced_caption for window in clip.windows] == [
        {"qwen_lm": "A"},
        {},
        {"qwen_lm": "B"},
        {"qwen_lm": "C"},
    ]
    assert [len(call.args[0]) for call in stage.model.generate.call_args_list] == [2, 1]
    assert stage.model.generate.call_args_list[0].args[0][0] == [
        {"role": "system", "content": "Improve."},
        {"role": "user", "content": "a"},
    ]


def test_prompts_are_kept_by_stage_and_variant() -> None:
    kept = [prompt_for("caption", variant, None) for variant in ("default", "av", "av-surveillance")]
    kept += [prompt_for("enhance", variant, None) for variant in ("default", "av-surveillance")]
    assert len(set(kept)) == 5
    assert prompt_for("caption", "nothing", "Mine.") == "Mine."
    with pytest.raises(ValueError, match="Invalid prompt variant: nothing"):
        prompt_for("caption", "nothing", None)


@pytest.mark.parametrize("missing", [None, {}, {"qwen": None}])
def test_a_window_without_a_caption_is_named_and_left_out(missing: Any) -> None:
    stage = CaptionEnhancementStage(captioning_model_variant="qwen", model_variant="qwen3")
    stage.model = Mock()
    stage.model.generate.side_effect = lambda chats: [chat[1]["content"].upper() for chat in chats]
    clip = Clip("clip.mp4", windows=[Window(0, 0, caption=missing), Window(1, 1, caption={"qwen": "b"})])
    stage.process(task_of(clip))
    assert [window.enhanced_caption for window in clip.windows] == [{}, {"qwen_lm": "B"}]
    assert clip.errors == {"window-0": "empty"}


@pytest.mark.parametrize(
    ("values", "variant"),
    [
        (("/m", 4, True, 64), "qwen"),
        (("/m", "qwen2.5", 4, True, 64), "qwen2.5"),
        (("/m", "qwen3", 4, True, 64), "qwen3"),
    ],
)
def test_the_text_models_arguments_may_stand_in_the_order_of_any_release(values: Any, variant: str) -> None:
    model = QwenLM(*values)
    assert (model.model_dir, model.model_variant, model.caption_batch_size) == ("/m", variant, 4)
    assert (model.fp8, model.max_output_tokens) == (True, 64)


def test_qwen3_is_asked_not_to_think() -> None:
    model = QwenLM(model_variant="qwen3")
    model.llm, model.tokenizer, model.sampling_params = Mock(), Mock(), Mock()
    model.llm.generate.return_value = [Mock(outputs=[Mock(text="a")])]
    assert model.generate(iter([[{"role": "user", "content": "1"}]])) == ["a"]
    assert model.tokenizer.apply_chat_template.call_args.kwargs["enable_thinking"] is False


@pytest.mark.parametrize("is_fp8", [True, False])
def test_the_text_model_is_loaded_as_theirs(is_fp8: bool) -> None:
    model = QwenLM("/models", 4, is_fp8, 256)
    with (
        patch("capflow_tasks.curator.qwen_vl.VLLM_AVAILABLE", True),
        patch("capflow_tasks.curator.qwen_vl.LLM") as llm,
        patch("capflow_tasks.curator.qwen_vl.SamplingParams") as sampling,
        patch("capflow_tasks.curator.qwen_vl.AutoTokenizer") as tokenizers,
    ):
        model.setup()
    weights = "/models/Qwen/Qwen2.5-14B-Instruct"
    llm.assert_called_once_with(model=weights, quantization="fp8" if is_fp8 else None, enforce_eager=False)
    sampling.assert_called_once_with(
        temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=256, stop_token_ids=[]
    )
    tokenizers.from_pretrained.assert_called_once_with(weights)
    assert model.model_id_names() == ["Qwen/Qwen2.5-14B-Instruct"]


def test_the_text_model_answers_chats() -> None:
    model = QwenLM("/models", 4, False, 256)
    model.llm, model.tokenizer, model.sampling_params = Mock(), Mock(), Mock()
    model.tokenizer.apply_chat_template.return_value = ["one", "two"]
    model.llm.generate.return_value = [Mock(outputs=[Mock(text=text)]) for text in "ab"]
    chats: list[Any] = [[{"role": "user", "content": "1"}], [{"role": "user", "content": "2"}]]
    assert model.generate(chats) == ["a", "b"]
    model.tokenizer.apply_chat_template.assert_called_once_with(
        chats, tokenize=False, add_generation_prompt=True
    )
    model.llm.generate.assert_called_once_with(["one", "two"], sampling_params=model.sampling_params)


def test_the_text_model_says_what_is_missing_and_fetches_its_weights_once(tmp_path: Path) -> None:
    with (
        patch("capflow_tasks.curator.qwen_vl.VLLM_AVAILABLE", False),
        pytest.raises(ImportError, match="vllm is required for QwenLM"),
    ):
        QwenLM("models", 4, False, 256).setup()
    with patch("capflow_tasks.curator.qwen_vl.download_model_from_hf") as download:
        QwenLM.download_weights_on_node(str(tmp_path))
        folder = tmp_path / "Qwen" / "Qwen2.5-14B-Instruct"
        (folder / "model.safetensors").touch()
        QwenLM.download_weights_on_node(str(tmp_path))
    download.assert_called_once_with(
        model_id="Qwen/Qwen2.5-14B-Instruct", local_dir=folder, revision="cf98f3b"
    )
