"""A text model that rewrites captions; NeMo Curator's `QwenLM`. vLLM is imported by `setup`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from capflow_tasks.curator.library import (
    LLM,
    VLLM_AVAILABLE,
    AutoTokenizer,
    ModelInterface,
    SamplingParams,
    missing_vllm,
)
from capflow_tasks.engine.weights import download_model_from_hf, has_all_weights

logger = logging.getLogger(__name__)

_QWEN_LM_MODEL_ID = "Qwen/Qwen2.5-14B-Instruct"
_QWEN_LM_MODEL_REVISION = "cf98f3b"

#: A chat: {"role", "content"} per message.
Chat = list[dict[str, str]]


class QwenLM(ModelInterface):
    """Qwen2.5 for text in vLLM's synchronous engine; `vllm_kwargs` go to it and win over what is set here."""

    def __init__(
        self, model_dir: str, caption_batch_size: int, fp8: bool, max_output_tokens: int, **vllm_kwargs: Any
    ) -> None:
        self.model_dir = model_dir
        self.caption_batch_size = caption_batch_size
        self.fp8 = fp8
        self.max_output_tokens = max_output_tokens
        self.vllm_kwargs = vllm_kwargs

    def model_id_names(self) -> list[str]:  # type: ignore[override]
        """A method here, as in NeMo Curator; with every other model it is a property."""
        return [_QWEN_LM_MODEL_ID]

    def setup(self) -> None:
        if not VLLM_AVAILABLE:
            raise missing_vllm("QwenLM")
        self.weight_file = str(Path(self.model_dir) / _QWEN_LM_MODEL_ID)
        arguments = {
            "model": self.weight_file,
            "quantization": "fp8" if self.fp8 else None,
            "enforce_eager": False,
        }
        self.llm: Any = LLM(**{**arguments, **self.vllm_kwargs})
        self.sampling_params: Any = SamplingParams(
            temperature=0.1,
            top_p=0.001,
            repetition_penalty=1.05,
            max_tokens=self.max_output_tokens,
            stop_token_ids=[],
        )
        self.tokenizer = AutoTokenizer.from_pretrained(self.weight_file)

    def generate(self, inputs: list[Chat]) -> list[str]:
        """Return the answer to each chat, in order."""
        prompts = self.tokenizer.apply_chat_template(inputs, tokenize=False, add_generation_prompt=True)
        outputs = self.llm.generate(prompts, sampling_params=self.sampling_params)
        return [output.outputs[0].text for output in outputs]

    @classmethod
    def download_weights_on_node(cls, model_dir: str) -> None:
        """Bring the checkpoint to where `QwenLM(model_dir, ...)` looks, unless it is there."""
        folder = Path(model_dir) / _QWEN_LM_MODEL_ID
        folder.mkdir(parents=True, exist_ok=True)
        if has_all_weights(folder):
            logger.info(f"QwenLM weights already present at: {folder}")
            return
        download_model_from_hf(model_id=_QWEN_LM_MODEL_ID, local_dir=folder, revision=_QWEN_LM_MODEL_REVISION)
        logger.info(f"QwenLM weights downloaded to: {folder}")
