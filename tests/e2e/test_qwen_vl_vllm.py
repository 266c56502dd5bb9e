"""QwenVL with real frames in real vLLM on the CPU: one engine, a checkpoint of random weights."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from capflow_tasks.curator.caption_stages import (
    CaptionGenerationStage,
    CaptionPreparationStage,
    Clip,
    Video,
    VideoTask,
)
from capflow_tasks.curator.frames import CLIP_COLOURS, normalise
from capflow_tasks.curator.qwen_vl import PromptFormatter, QwenVL
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.video import load_video

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # lets a test run its own code in the engine's process
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
#: 4 to 16 tokens per pair of frames.
BUDGET = MediaBudget(frame_min_pixels=4 * 28 * 28, frame_max_pixels=16 * 28 * 28)
ENGINE: dict[str, Any] = {
    "max_model_len": 4096,
    "max_num_batched_tokens": 4096,
    "max_num_seqs": 8,
    "enforce_eager": True,
}
STAGE2_PROMPT = "Based on this initial description, provide a detailed caption: "


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder of models in which the checkpoint of the variant "qwen" lies where the hub's would."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = folder / "Qwen" / "Qwen2.5-VL-7B-Instruct"
    script = REPOSITORY / "deploy" / "demo" / "tiny_checkpoint.py"
    subprocess.run(
        [sys.executable, script, checkpoint], check=True, timeout=200, env={**os.environ, **ENVIRONMENT}
    )
    return str(folder)


def load_model(models: str, variant: str, **options: Any) -> Iterator[QwenVL]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ENVIRONMENT.items():
            patched.setenv(name, value)
        QwenVL.download_weights_on_node(models, variant=variant)  # all there: nothing is fetched
        model = QwenVL(models, variant, 8, fp8=False, max_output_tokens=24, **options, **ENGINE)
        model.setup()
        model.model.apply_model(watch_tower)
        yield model
        model.model.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def model(models: str) -> Iterator[QwenVL]:
    yield from load_model(models, "qwen", stage2_prompt_text=STAGE2_PROMPT)


@pytest.fixture(scope="module")
def model_of_1_3(models: str) -> Iterator[QwenVL]:
    yield from load_model(models, "qwen2.5")


@dataclass(frozen=True, slots=True)
class TowerCall:
    """What the vision tower was given and what it made of it."""

    mean: float
    spread: float
    #: Mean of its output over all tokens.
    hidden: tuple[float, ...]


def watch_tower(engine_model: Any) -> None:
    """Note every call of the vision tower; runs in the engine's process."""
    tower = engine_model.visual
    tower.noted = []

    def note_pixels(module: Any, inputs: Any, output: Any) -> None:
        pixels = output.float()
        tower.pixels = pixels.mean().item(), pixels.std().item()

    def note_output(module: Any, inputs: Any, output: Any) -> None:
        tower.noted.append((*tower.pixels, tuple(output.float().mean(0).tolist())))

    # the first step inside the tower: normalises the pixels, or passes them on
    tower.input_norm.register_forward_hook(note_pixels)
    tower.register_forward_hook(note_output)


def take_notes(engine_model: Any) -> list[tuple[Any, ...]]:
    notes: list[tuple[Any, ...]] = engine_model.visual.noted
    engine_model.visual.noted = []
    return notes


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return four files of three seconds: a bright square that moves in another direction in each."""
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{number}.mp4", number) for number in range(4)]


def make_clip(path: Path, direction: int, count: int = 30) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for number in range(count):
            pixels = np.full((84, 112, 3), 20 + 40 * direction, np.uint8)
            along = 2 * number if direction % 2 else 2 * (count - number)
            x, y = (along, 30) if direction < 2 else (40, along)
            pixels[y : y + 20, x : x + 20] = (250, 60 * direction, 10)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def frames_of(path: str) -> NDArray[np.uint8]:
    return load_video(path, BUDGET).frames


class Listener:
    """Stands between QwenVL and vLLM's engine and keeps what goes through."""

    def __init__(self, model: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[list[str]] = []
        self.outputs: list[list[Any]] = []
        self._generate = model.model.generate
        monkeypatch.setattr(model.model, "generate", self)

    def __call__(self, inputs: list[dict[str, Any]], **arguments: Any) -> Any:
        outputs = self._generate(inputs, **arguments)
        self.prompts.append([item["prompt"] for item in inputs])
        self.outputs.append(outputs)
        return outputs

    def texts(self, call: int) -> list[str]:
        return [output.outputs[0].text for output in self.outputs[call]]

    def video_tokens(self, call: int, pad: int) -> list[int]:
        return [list(output.prompt_token_ids).count(pad) for output in self.outputs[call]]


@pytest.fixture
def listener(model: QwenVL, monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(model, monkeypatch)


@pytest.fixture
def formatter(models: str) -> PromptFormatter:
    return PromptFormatter("qwen", models)


def test_frames_become_captions_and_every_token_of_every_video_is_seen(
    model: QwenVL, clips: list[str], formatter: PromptFormatter, listener: Listener
) -> None:
    inputs = [formatter.generate_inputs("What happens?", frames_of(path)) for path in clips]
    captions = model.generate(inputs)
    assert len(captions) == len(clips)
    assert all(captions)
    _, height, width, _ = frames_of(clips[0]).shape
    pad = formatter.processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert listener.video_tokens(0, pad) == [3 * height * width // 28**2] * 4


def test_a_bare_preprocessed_tensor_is_captioned_as_in_the_manual(
    model: QwenVL, clips: list[str], formatter: PromptFormatter
) -> None:
    import torch

    formatted_prompt = formatter.generate_inputs("What happens?")["prompt"]
    video_tensor = torch.from_numpy(normalise(frames_of(clips[0]), CLIP_COLOURS))
    video_inputs = [
        {"prompt": formatted_prompt, "multi_modal_data": {"video": video_tensor}},
    ]
    captions = model.generate(video_inputs)
    assert captions == model.generate([formatter.generate_inputs("What happens?", frames_of(clips[0]))])
    assert video_inputs[0]["multi_modal_data"]["video"] is video_tensor


def test_stage_two_sees_the_video_again_and_the_first_caption(
    model: QwenVL, clips: list[str], formatter: PromptFormatter, listener: Listener
) -> None:
    video_inputs = [formatter.generate_inputs("user_prompt", frames_of(path)) for path in clips]
    captions = model.generate(video_inputs, generate_stage2_caption=True, batch_size=4)
    assert listener.texts(1) == captions
    before, _, after = formatter.generate_inputs("user_prompt")["prompt"].partition("user_prompt")
    assert listener.prompts[1] == [f"{before}{STAGE2_PROMPT}{first}{after}" for first in listener.texts(0)]
    pad = formatter.processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert listener.video_tokens(0, pad) == listener.video_tokens(1, pad)
    assert min(listener.video_tokens(1, pad)) > 0


def test_one_bad_video_does_not_cost_the_others_their_captions(
    model: QwenVL, clips: list[str], formatter: PromptFormatter
) -> None:
    good = [formatter.generate_inputs("What happens?", frames_of(path)) for path in clips]
    flat = formatter.generate_inputs("What happens?", np.zeros((28, 28, 3), np.uint8))
    no_video = formatter.generate_inputs("What happens?")
    captions = model.generate([good[0], flat, good[1], no_video, good[2]], on_error="skip")
    assert [caption is None for caption in captions] == [False, True, False, True, False]
    assert captions[0] == model.generate([good[0]])[0]
    with pytest.raises(ValueError, match="no video"):
        model.generate([good[0], no_video])
    assert model.generate([good[0]]) == [captions[0]]


def tensor_of(frames: NDArray[Any]) -> Any:
    """Return frames as NeMo Curator's decoder does: a tensor of (T, RGB, H, W)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


#: How NeMo Curator's releases hand over frames.
FORMS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "bytes": lambda frames: frames,
    "tensor of bytes": tensor_of,
    "floats of 0 to 255": lambda frames: tensor_of(frames).float(),
    "normalised": lambda frames: tensor_of(normalise(frames, CLIP_COLOURS).transpose(0, 2, 3, 1)),
    "16 bits": lambda frames: tensor_of(normalise(frames, CLIP_COLOURS).transpose(0, 2, 3, 1)).bfloat16(),
}


def reference_pixels(formatter: PromptFormatter, frames: NDArray[np.uint8]) -> Any:
    """Return what transformers' processor makes of frames, which are not resized."""
    processor = formatter.processor.video_processor
    return processor(videos=[frames], do_resize=False, return_tensors="pt")["pixel_values_videos"]


@pytest.mark.parametrize("loaded", ["model", "model_of_1_3"])
def test_the_vision_tower_gets_the_pixels_that_the_reference_computes(
    loaded: str, request: pytest.FixtureRequest, formatter: PromptFormatter
) -> None:
    model: QwenVL = request.getfixturevalue(loaded)
    model.model.apply_model(take_notes)  # those of other tests
    random = np.random.default_rng(0)
    calls = []
    for number, to_form in enumerate(FORMS.values()):
        # as bright as no other, so that neither the engine knows it nor a wrong scale goes unnoticed
        frames = random.integers(40 * number, 40 * number + 60, (8, 84, 112, 3), np.uint8)
        model.generate([formatter.generate_inputs("What happens?", to_form(frames))])
        (note,) = model.model.apply_model(take_notes)[0]
        calls.append(TowerCall(*note))
        wanted = reference_pixels(formatter, frames)
        assert calls[-1].mean == pytest.approx(wanted.mean().item(), abs=0.01)
        assert calls[-1].spread == pytest.approx(wanted.std().item(), abs=0.01)
    for one, other in itertools.combinations(calls, 2):
        assert not np.allclose(one.hidden, other.hidden, rtol=0.01)


@pytest.mark.parametrize("loaded", ["model", "model_of_1_3"])
@pytest.mark.parametrize("shape", [(5, 30, 61, 3), (2, 1080, 1920, 3)])
def test_frames_of_any_size_are_captioned(
    loaded: str,
    shape: tuple[int, ...],
    request: pytest.FixtureRequest,
    formatter: PromptFormatter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: QwenVL = request.getfixturevalue(loaded)
    listener = Listener(model, monkeypatch)
    frames = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert all(model.generate([formatter.generate_inputs("What happens?", frames)]))
    pad = formatter.processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    (tokens,) = listener.video_tokens(0, pad)
    assert 0 < tokens <= 768 * (len(frames) + 1) // 2


def test_the_stages_turn_files_into_captions_window_by_window(
    model: QwenVL, models: str, clips: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    files = [Clip(clips[0]), Clip("in memory", buffer=Path(clips[1]).read_bytes()), Clip(str(broken))]
    task = VideoTask(Video(tmp_path, files))
    preparation = CaptionPreparationStage(
        model_dir=models, budget=BUDGET, window_size=12, remainder_threshold=5
    )
    preparation.setup()
    generation = CaptionGenerationStage(model_dir=models, generate_stage2_caption=True)
    generation.model = model
    generation.process(preparation.process(task))
    assert [[(window.start_frame, window.end_frame) for window in clip.windows] for clip in files] == [
        [(0, 11), (12, 23), (24, 29)],
        [(0, 11), (12, 23), (24, 29)],
        [],
    ]
    assert all((window.caption or {})["qwen"] for clip in files for window in clip.windows)
    assert [clip.errors.keys() for clip in files] == [set(), set(), {"windows"}]
