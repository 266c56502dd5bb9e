"""What code written against NeMo Curator's QwenVL relies on, and the two examples of its manual."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest

from capflow_tasks.curator import qwen_vl
from capflow_tasks.curator.qwen_vl import (
    _QWEN2_5_VL_MODEL_ID,
    _QWEN_VARIANTS_INFO,
    VARIANT_MAPPING,
    ModelInterface,
    PromptFormatter,
    QwenLM,
    QwenVL,
)

VIDEO_PROMPT = "<|vision_start|><|video_pad|><|vision_end|>"


def said(*texts: str) -> list[Mock]:
    """Return vLLM's outputs with these texts."""
    return [Mock(outputs=[Mock(text=text)]) for text in texts]


class ScriptedLLM:
    """Stands for vLLM's LLM: repeats the prompt; keeps how it was made and what it was asked."""

    made: ScriptedLLM

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.calls: list[list[dict[str, Any]]] = []
        ScriptedLLM.made = self

    def generate(self, prompts: list[dict[str, Any]], *, sampling_params: Any, use_tqdm: bool) -> list[Mock]:
        assert not use_tqdm
        assert sampling_params.arguments["top_p"] == 0.001
        self.calls.append(prompts)
        return said(*(f"seen: {prompt['prompt']}" for prompt in prompts))


class ScriptedSamplingParams:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedLLM]:
    monkeypatch.setattr(qwen_vl, "VLLM_AVAILABLE", True)
    monkeypatch.setattr(qwen_vl, "LLM", ScriptedLLM)
    monkeypatch.setattr(qwen_vl, "SamplingParams", ScriptedSamplingParams)
    return ScriptedLLM


def make_model(**arguments: Any) -> QwenVL:
    return QwenVL(**{"model_dir": "models", "model_variant": "qwen", "caption_batch_size": 4, **arguments})


def mocked_model(**arguments: Any) -> QwenVL:
    """Return a model that was never set up, with mocks in place of what `setup` makes, as their tests do."""
    model = make_model(stage2_prompt_text="Stage 2 prompt: ", **arguments)
    model.model = Mock()
    model.sampling_params = Mock()
    return model


@pytest.mark.usefixtures("engine")
def test_the_basic_example_of_the_manual_runs_as_written(tmp_path: Path) -> None:
    formatted_prompt, video_tensor = f"{VIDEO_PROMPT}What happens?", np.zeros((4, 3, 28, 28), np.float32)
    with patch("capflow_tasks.curator.qwen_vl.download_model_from_hf") as download:
        QwenVL.download_weights_on_node(str(tmp_path))
    model = QwenVL(
        model_dir=str(tmp_path),
        model_variant="qwen",
        caption_batch_size=8,
        fp8=True,
        max_output_tokens=512,
    )
    model.setup()
    video_inputs = [
        {"prompt": formatted_prompt, "multi_modal_data": {"video": video_tensor}},
    ]
    captions = model.generate(video_inputs)
    assert captions[0] == f"seen: {formatted_prompt}"
    download.assert_called_once_with(
        model_id="Qwen/Qwen2.5-VL-7B-Instruct",
        local_dir=tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct",
        revision="cc59489",
    )


def test_the_two_stage_example_of_the_manual_runs_as_written(engine: type[ScriptedLLM]) -> None:
    video_inputs = [
        {"prompt": f"About {number}: user_prompt.", "multi_modal_data": {"video": f"video {number}"}}
        for number in range(6)
    ]
    model = QwenVL(
        model_dir="/path/to/models",
        model_variant="qwen",
        caption_batch_size=8,
        stage2_prompt_text="Based on this initial description, provide a detailed caption: ",
    )
    model.setup()
    captions = model.generate(
        video_inputs,
        generate_stage2_caption=True,
        batch_size=4,
    )
    assert [len(call) for call in engine.made.calls] == [4, 4, 2, 2]
    assert captions == [
        f"seen: About {number}: Based on this initial description, provide a detailed caption: "
        f"seen: About {number}: user_prompt.."
        for number in range(6)
    ]


def test_every_argument_is_kept_and_the_defaults_are_theirs() -> None:
    model = QwenVL("/models", "qwen", 4)
    assert isinstance(model, ModelInterface)
    assert (model.model_dir, model.model_variant, model.caption_batch_size) == ("/models", "qwen", 4)
    assert (model.fp8, model.max_output_tokens, model.model_does_preprocess) == (True, 512, False)
    assert (model.disable_mmcache, model.verbose) == (False, False)
    assert model.stage2_prompt == "Please refine this caption: "
    assert model.weight_file == str(Path("/models") / _QWEN_VARIANTS_INFO["qwen"])
    assert make_model(stage2_prompt_text="Again: ").stage2_prompt == "Again: "


@pytest.mark.parametrize(
    ("variant", "model_id"),
    [
        ("qwen", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen2.5", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen3", "Qwen/Qwen3-VL-8B-Instruct"),
    ],
)
def test_a_variant_names_one_checkpoint(variant: str, model_id: str) -> None:
    model = make_model(model_variant=variant)
    assert model.model_id_names == [_QWEN_VARIANTS_INFO[variant]] == [model_id]
    assert model.weight_file == str(Path("models") / model_id)


@pytest.mark.parametrize(
    "use",
    [
        lambda: make_model(model_variant="llama"),
        lambda: QwenVL.download_weights_on_node("models", variant="llama"),
        lambda: QwenLM("models", "llama"),
        lambda: QwenLM.download_weights_on_node("models", "llama"),
    ],
)
def test_an_unknown_variant_is_a_key_error_that_names_the_valid_ones(use: Callable[[], object]) -> None:
    with pytest.raises(KeyError, match=r"model variant: llama\. Valid variants are: qwen, qwen2\.5, qwen3"):
        use()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        # 1.0 to 1.2
        (("m", "qwen", 8, True, 64, True), {"model_does_preprocess": True}),
        (("m", "qwen", 8, True, 64, False, True), {"disable_mmcache": True}),
        (("m", "qwen", 8, True, 64, False, True, "Again: ", True), {"stage2_prompt": "Again: "}),
        (("m", "qwen3", 8, True, 64, True, False, "Again: "), {"model_does_preprocess": True}),
        # 1.3 and 1.4
        (("m", "qwen2.5", 8, True, 64, True), {"disable_mmcache": True, "model_does_preprocess": False}),
        (("m", "qwen3", 8, True, 64, True, "Again: ", True), {"disable_mmcache": True, "verbose": True}),
        (("m", "qwen3", 8, True, 64, True, None), {"stage2_prompt": "Please refine this caption: "}),
        (("m", "qwen3", 8), {"max_output_tokens": 512, "fp8": True}),
    ],
)
def test_arguments_may_stand_in_the_order_of_any_release(values: Any, named: dict[str, object]) -> None:
    model = QwenVL(*values)
    assert {name: getattr(model, name) for name in named} == named
    assert (model.model_variant, model.caption_batch_size) == values[1:3]


def test_an_argument_too_many_or_given_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="at most 9 positional arguments: model_dir, "):
        QwenVL("m", "qwen", 8, True, 64, False, False, None, False, "one more")
    with pytest.raises(TypeError, match="multiple values"):
        QwenVL("m", "qwen", 8, caption_batch_size=8)


@pytest.mark.parametrize(("variant", "factor"), [("qwen2.5", 28), ("qwen3", 32)])
def test_since_1_3_the_processor_always_preprocesses(
    engine: type[ScriptedLLM], variant: str, factor: int
) -> None:
    make_model(model_variant=variant).setup()
    assert engine.made.arguments["mm_processor_kwargs"] == {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_factor": factor,
        "min_pixels": 4 * factor**2,
        "max_pixels": 16384 * factor**2,
        "video_min_pixels": 128 * factor**2,
        "video_max_pixels": 768 * factor**2,
        "video_total_pixels": 24576 * factor**2,
    }


@pytest.mark.parametrize("is_fp8", [True, False])
@pytest.mark.parametrize("is_preprocessing", [True, False])
def test_setup_asks_vllm_for_what_the_manual_says(is_fp8: bool, is_preprocessing: bool) -> None:
    model = make_model(
        fp8=is_fp8,
        model_does_preprocess=is_preprocessing,
        disable_mmcache=is_preprocessing,
        max_output_tokens=77,
    )
    with (
        patch("capflow_tasks.curator.qwen_vl.VLLM_AVAILABLE", True),
        patch("capflow_tasks.curator.qwen_vl.LLM") as llm,
        patch("capflow_tasks.curator.qwen_vl.SamplingParams") as sampling,
        patch("capflow_tasks.curator.qwen_vl.logger") as logger,
    ):
        model.setup()
    llm.assert_called_once_with(
        model=model.weight_file,
        limit_mm_per_prompt={"image": 0, "video": 1},
        quantization="fp8" if is_fp8 else None,
        max_model_len=32768,
        gpu_memory_utilization=0.85,
        mm_processor_kwargs={
            "do_resize": is_preprocessing,
            "do_rescale": is_preprocessing,
            "do_normalize": is_preprocessing,
        },
        mm_processor_cache_gb=0 if is_preprocessing else 4,
        max_num_batched_tokens=32768,
    )
    sampling.assert_called_once_with(
        temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=77, stop_token_ids=[]
    )
    assert model.model is llm.return_value
    assert model.sampling_params is sampling.return_value
    logger.info.assert_called_once_with(
        "CUDA graph enabled for sequences smaller than 16k tokens; "
        "adjust accordingly for even longer sequences"
    )


def test_further_arguments_go_to_vllm_and_win(engine: type[ScriptedLLM]) -> None:
    make_model(max_model_len=2048, dtype="float32").setup()
    arguments = engine.made.arguments
    assert (arguments["max_model_len"], arguments["dtype"]) == (2048, "float32")
    assert arguments["max_num_batched_tokens"] == 32768


def test_without_vllm_setup_says_what_to_install() -> None:
    with (
        patch("capflow_tasks.curator.qwen_vl.VLLM_AVAILABLE", False),
        pytest.raises(ImportError, match="vllm is required for QwenVL model but is not installed") as raised,
    ):
        make_model().setup()
    assert ".[gpu]" in str(raised.value)


def test_the_module_imports_where_vllm_is_not_installed_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.modules['vllm'] = None\n"
        "from capflow_tasks.qwen_vl import VLLM_AVAILABLE, PromptFormatter, QwenLM, QwenVL\n"
        "print(VLLM_AVAILABLE)\n"
        "print(*sys.modules.keys() & {'torch', 'transformers', 'qwen_vl_utils', 'cv2'})\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.split() == ["False"]


def test_the_documented_import_path_is_the_module_itself() -> None:
    assert importlib.import_module("capflow_tasks.qwen_vl") is qwen_vl
    with patch("capflow_tasks.qwen_vl.VLLM_AVAILABLE", False), pytest.raises(ImportError):
        make_model().setup()


def test_batches_go_to_vllm_one_by_one_and_captions_keep_their_order() -> None:
    model = mocked_model()
    videos = [{"prompt": f"{number}", "multi_modal_data": {"video": "video"}} for number in range(4)]
    model.model.generate.side_effect = [said("a", "b"), said("c", "d")]
    with patch("capflow_tasks.curator.qwen_vl.grouping.split_by_chunk_size") as split:
        split.return_value = [videos[:2], videos[2:]]
        assert model.generate(videos, generate_stage2_caption=False, batch_size=2) == ["a", "b", "c", "d"]
    split.assert_called_once_with(videos, 2)
    first, second = model.model.generate.call_args_list
    assert first.args == (videos[:2],)
    assert second.args == (videos[2:],)
    assert first.kwargs == {"sampling_params": model.sampling_params, "use_tqdm": False}


def test_stage_two_is_one_substitution_as_their_tests_see_it() -> None:
    model = mocked_model()
    videos = [{"prompt": "Initial prompt", "multi_modal_data": {"video": "video1"}}]
    model.model.generate.side_effect = [said("Stage 1 caption"), said("Stage 2 final caption")]
    with patch("capflow_tasks.curator.qwen_vl.re.sub", return_value="Updated prompt") as substitute:
        assert model.generate(videos, generate_stage2_caption=True) == ["Stage 2 final caption"]
    substitute.assert_called_once_with(
        model.pattern, r"\1Stage 2 prompt: Stage 1 caption\3", "Initial prompt", flags=re.DOTALL
    )
    assert model.model.generate.call_args.args[0][0]["prompt"] == "Updated prompt"


def test_an_error_of_the_engine_is_logged_and_raised() -> None:
    model = mocked_model()
    model.model.generate.side_effect = RuntimeError("Test error")
    with (
        patch("capflow_tasks.curator.qwen_vl.logger") as logger,
        pytest.raises(RuntimeError, match="Test error"),
    ):
        model.generate([{"prompt": "Test prompt", "multi_modal_data": {"video": "video1"}}])
    logger.error.assert_called_once_with("Error generating caption for batch: Test error")


def test_no_videos_give_no_captions_without_asking() -> None:
    model = mocked_model()
    assert model.generate([]) == []
    model.model.generate.assert_not_called()
    assert make_model().generate([]) == []


def test_videos_may_come_from_any_iterable() -> None:
    model = mocked_model()
    model.model.generate.side_effect = [said("a", "b"), said("c")]
    assert model.generate(({"prompt": text} for text in "abc"), batch_size=2) == ["a", "b", "c"]


@pytest.mark.usefixtures("engine")
def test_verbose_logs_the_first_captions(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = make_model(verbose=True)
    model.setup()
    model.generate([{"prompt": "What?"}])
    assert "Stage 1 caption: seen: What?" in caplog.messages


def test_the_download_takes_names_and_revision_from_where_tests_patch_them(tmp_path: Path) -> None:
    with (
        patch("capflow_tasks.curator.qwen_vl._QWEN2_5_VL_MODEL_ID", "someone/else"),
        patch("capflow_tasks.curator.qwen_vl._QWEN2_5_VL_MODEL_REVISION", "1234567"),
        patch("capflow_tasks.curator.qwen_vl.download_model_from_hf") as download,
    ):
        QwenVL.download_weights_on_node(str(tmp_path))
    folder = tmp_path / "someone" / "else"
    download.assert_called_once_with(model_id="someone/else", local_dir=folder, revision="1234567")
    assert folder.is_dir()
    assert _QWEN2_5_VL_MODEL_ID == "Qwen/Qwen2.5-VL-7B-Instruct"


def make_formatter(variant: str = "qwen", model_dir: str | None = None) -> PromptFormatter:
    with patch("capflow_tasks.curator.qwen_vl.AutoProcessor") as processors:
        formatter = PromptFormatter(variant, model_dir)
    processors.from_pretrained.return_value.apply_chat_template.side_effect = ["first text", "second text"]
    assert formatter.processor is processors.from_pretrained.return_value
    return formatter


@pytest.mark.parametrize("variant", ["qwen", "qwen2.5", "qwen3"])
def test_the_template_comes_from_the_variants_checkpoint(variant: str) -> None:
    with patch("capflow_tasks.curator.qwen_vl.AutoProcessor") as processors:
        formatter = PromptFormatter(prompt_variant=variant)
        PromptFormatter(variant, "/models")
    assert (formatter.prompt_variant, formatter.text_prompt) == (variant, None)
    named, local = processors.from_pretrained.call_args_list
    assert named.args == (VARIANT_MAPPING[variant],)
    assert local.args == (f"/models/{VARIANT_MAPPING[variant]}",)


def test_an_unknown_variant_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(
        ValueError, match=r"Invalid prompt variant: llama\. Valid variants are: qwen, qwen2\.5, qwen3"
    ):
        PromptFormatter("llama")


def test_one_message_is_rendered_with_the_video_before_the_text() -> None:
    formatter, frames = make_formatter(), np.zeros((2, 3, 28, 28), np.float32)
    made = formatter.generate_inputs(prompt="Что? 🎉", video_inputs=frames)
    assert made == {"prompt": "first text", "multi_modal_data": {"video": frames}}
    assert made["multi_modal_data"]["video"] is frames
    formatter.processor.apply_chat_template.assert_called_once_with(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Что? 🎉"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )


def test_the_text_is_rendered_once_unless_it_is_overridden() -> None:
    formatter = make_formatter()
    assert formatter.generate_inputs("a")["prompt"] == "first text"
    assert formatter.generate_inputs("b")["prompt"] == formatter.text_prompt == "first text"
    assert formatter.generate_inputs("c", override_text_prompt=True)["prompt"] == "second text"
    assert formatter.text_prompt == "second text"
    assert formatter.processor.apply_chat_template.call_count == 2


def test_without_a_video_there_is_only_text() -> None:
    assert make_formatter().generate_inputs("a", fps=2.0) == {
        "prompt": "first text",
        "multi_modal_data": {"video": None},
    }


def test_a_rate_makes_metadata() -> None:
    frames = np.zeros((4, 3, 28, 28))
    video, metadata = make_formatter().generate_inputs("a", frames, fps=4.0)["multi_modal_data"]["video"]
    assert video is frames
    assert (metadata["fps"], metadata["duration"], metadata["frames_indices"]) == (4.0, 1.0, [0, 1, 2, 3])


@pytest.mark.parametrize("variant", ["qwen2.5", "qwen3"])
def test_since_1_3_frames_always_have_metadata(variant: str) -> None:
    frames = np.zeros((6, 30, 30, 3), np.uint8)
    video, metadata = make_formatter(variant).generate_inputs("a", frames)["multi_modal_data"]["video"]
    assert video is frames
    assert (metadata["fps"], metadata["total_num_frames"]) == (2.0, 6)
    assert make_formatter(variant).generate_inputs("a")["multi_modal_data"] == {"video": None}
