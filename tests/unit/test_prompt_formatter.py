from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from capflow_tasks.curator.qwen_vl import VARIANT_MAPPING, PromptFormatter


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
