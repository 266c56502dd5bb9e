"""Writes a prompt about a video in the model's chat template; NeMo Curator's `PromptFormatter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capflow_tasks.curator.frames import describe_frames
from capflow_tasks.curator.library import AutoProcessor
from capflow_tasks.curator.qwen_vl import _QWEN_VARIANTS_INFO
from capflow_tasks.records import JsonObject

#: Hub name of each variant's checkpoint, which holds the chat template.
VARIANT_MAPPING: dict[str, str] = dict(_QWEN_VARIANTS_INFO)


class PromptFormatter:
    """Renders one user message, video first; the template comes from `model_dir`, or else from the hub."""

    def __init__(self, prompt_variant: str, model_dir: str | None = None) -> None:
        if prompt_variant not in VARIANT_MAPPING:
            valid = ", ".join(VARIANT_MAPPING)
            raise ValueError(f"Invalid prompt variant: {prompt_variant}. Valid variants are: {valid}")
        name = VARIANT_MAPPING[prompt_variant]
        self.prompt_variant = prompt_variant
        self.text_prompt: str | None = None
        self.processor: Any = AutoProcessor.from_pretrained(
            str(Path(model_dir) / name) if model_dir else name
        )

    def generate_inputs(
        self,
        prompt: str,
        video_inputs: Any = None,
        *,
        override_text_prompt: bool = False,
        fps: float | None = None,
    ) -> JsonObject:
        """Return an input for `QwenVL.generate`.

        The text is rendered once and kept, whatever `prompt` says later, until `override_text_prompt`.
        `fps` tells how many frames a second the bare frames in `video_inputs` were taken at.
        """
        if self.text_prompt is None or override_text_prompt:
            self.text_prompt = self.processor.apply_chat_template(
                self.create_message(prompt), tokenize=False, add_generation_prompt=True
            )
        if fps is not None and video_inputs is not None:
            video_inputs = (video_inputs, describe_frames(len(video_inputs), fps))
        return {"prompt": self.text_prompt, "multi_modal_data": {"video": video_inputs}}

    def create_message(self, prompt: str) -> list[JsonObject]:
        return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]
