"""A small plan by a tiny model of each family, which gets what transformers makes of the same chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from capflow_tasks.domains import prompts
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.records import JsonObject
from tests.checkpoints import NOISE_RULES, tiny_checkpoint
from tests.datasets import read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

#: Sizes that no family's processor changes: multiples of 28 and 32.
PICTURE, FRAME = (672, 448), (448, 224)
RATE, SECONDS = 8, 6
#: Values near 0 with a spread of 1, as bfloat16 and through another conversion of the video's colours.
TOLERANCE = 0.05


def draw_gradient(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 255, PICTURE[0]), np.linspace(0, 255, PICTURE[1]))
    colours = [x, y, np.full_like(x, 90 * number)]
    Image.fromarray(np.stack(colours[number:] + colours[:number], -1).astype(np.uint8)).save(path)


def film(path: Path) -> None:
    """A video without loss, each of whose frames has a grey of its own."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *FRAME, "yuv444p"
        for number in range(RATE * SECONDS):
            pixels = np.full((FRAME[1], FRAME[0], 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def caption(
    cli: Cli, model: Path, entries: list[JsonObject], *options: str, **environment: str
) -> list[JsonObject]:
    """Run the entries through the stages and return their records."""
    watched = cli.folder / "watched"
    watched.mkdir()
    cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.watched_engine:build",
        "TEST_WATCHED": str(watched),
        "CAPFLOW_MODEL": str(model),
        "CAPFLOW_MAX_MODEL_LEN": "16384",
        "CAPFLOW_MAX_ANSWER_TOKENS": "16",
        "CAPFLOW_GUARD_OFF": NOISE_RULES,
        "CAPFLOW_VIDEO_WINDOW_FRAMES": "6",
        "CAPFLOW_GPU_MEMORY_UTILIZATION": "0.2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        **environment,
    }
    answer = cli.run("capflow-produce", write_plan(cli.folder, entries), "--output", "out", *options)
    assert answer.returncode == 0, answer.stderr + cli.worker_log[-4000:]
    records = read_lines(cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["id"] for record in records] == [entry["id"] for entry in entries]
    assert all(record["caption"] for record in records)
    return records


def expected(model: Path, part: JsonObject, instruction: str, **media: Any) -> tuple[list[int], Any]:
    """Return the token ids and pixel values that transformers' processor makes of the chat."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    system = {"role": "system", "content": [{"type": "text", "text": load_catalogue(None).system}]}
    user = {"role": "user", "content": [part, {"type": "text", "text": instruction}]}
    text = processor.apply_chat_template([system, user], tokenize=False)
    made = processor(text=[text], return_tensors="pt", **media)
    pixels = made["pixel_values_videos" if "videos" in media else "pixel_values"]
    return made["input_ids"][0].tolist(), pixels.flatten(1).numpy()


def expected_picture(model: Path, path: Path) -> tuple[list[int], Any]:
    instruction = prompts.router_instruction(load_catalogue(None))
    return expected(model, {"type": "image"}, instruction, images=[Image.open(path)])


def expected_video(model: Path, path: Path) -> tuple[list[int], Any]:
    """The processor gets all frames and takes its own two a second."""
    domain = load_catalogue(None).resolve("video")
    overview = domain.agents[0]
    with av.open(path) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return expected(
        model,
        {"type": "video"},
        prompts.instruction_for(overview, domain, {}, prompts.WHOLE_VIDEO),
        videos=[frames.transpose(0, 3, 1, 2)],
        video_metadata=[{"fps": float(RATE), "total_num_frames": len(frames), "duration": float(SECONDS)}],
        do_sample_frames=True,
        fps=2.0,
    )


def asked(cli: Cli) -> list[JsonObject]:
    return read_lines(cli.folder / "watched" / "prompts.jsonl")


def received(cli: Cli) -> NDArray[np.float32]:
    """All that the vision tower was given, one patch or picture a row."""
    import torch

    files = sorted((cli.folder / "watched").glob("*.pt"))
    return np.concatenate([torch.load(file).numpy() for file in files])


def check_media(cli: Cli, references: list[tuple[list[int], Any]]) -> None:
    """The model reads the prompts and sees the pixels of the references, and no two see the same."""
    questions, tower = [line["token_ids"] for line in asked(cli)], received(cli)
    places = []
    for token_ids, pixels in references:
        # what follows opens the answer
        assert any(ids[: len(token_ids)] == token_ids for ids in questions)
        first = np.abs(tower - pixels[0]).max(1) < TOLERANCE
        starts = [at for at in np.flatnonzero(first) if at + len(pixels) <= len(tower)]
        same = [at for at in starts if np.abs(tower[at : at + len(pixels)] - pixels).max() < TOLERANCE]
        assert same, f"the tower was not given these {pixels.shape} values"
        given = tower[same[0] : same[0] + len(pixels)]
        assert (given.mean(), given.std()) == pytest.approx((pixels.mean(), pixels.std()), abs=0.01)
        places.append(same[0])
    assert len(set(places)) == len(references)


def make_media(cli: Cli, *, video: bool) -> tuple[list[JsonObject], list[Path]]:
    files = [cli.folder / "media" / name for name in ("0.png", "1.png", *["film.mkv"] * video)]
    for number, path in enumerate(files[:2]):
        draw_gradient(path, number)
    entries: list[JsonObject] = [{"id": number, "image": f"{number}.png"} for number in range(2)]
    if video:
        film(files[2])
        entries.append({"id": 2, "video": "film.mkv"})
    return entries, files


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen3.5"])
def test_pictures_and_videos_reach_a_model_that_reads_times_as_in_transformers(
    quick_cli: Cli, family: str
) -> None:
    model = tiny_checkpoint(family)
    entries, (first, second, video) = make_media(quick_cli, video=True)

    # Without the judge: random weights may fill its list of errors with escapes until they are cut off.
    *_, record = caption(quick_cli, model, entries, "--stages", "route,perceive,reason,summarize")

    windows = [name for name in record["reports"] if name.startswith("video@")]
    assert windows == ["video@00:00:00-00:00:03", "video@00:00:03-00:00:06"]
    pictures = [expected_picture(model, path) for path in (first, second)]
    check_media(quick_cli, [*pictures, expected_video(model, video)])
    _check_times(quick_cli, model)


def _check_times(cli: Cli, model: Path) -> None:
    """The frames of the second window have the times of the film: 24 to 47 of 8 a second, two a token."""
    from transformers import AutoTokenizer

    numbers = np.linspace(24, 47, 6).round().reshape(3, 2)
    times = [f"<{time:.1f} seconds>" for time in numbers.mean(1) / RATE]
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer.decode(line["token_ids"]) for line in asked(cli)]
    assert any(all(time in text for time in times) and "<0." not in text for text in texts)


def test_pictures_reach_a_model_of_another_maker_as_in_transformers(quick_cli: Cli) -> None:
    model = tiny_checkpoint("gemma3")
    entries, files = make_media(quick_cli, video=False)

    caption(quick_cli, model, entries)

    check_media(quick_cli, [expected_picture(model, path) for path in files])


def test_a_text_model_summarizes_and_judges_what_a_vision_model_saw(quick_cli: Cli) -> None:
    from transformers import AutoTokenizer

    eyes, words = tiny_checkpoint("qwen2.5-vl"), tiny_checkpoint("qwen3")
    entries, (first, second, video) = make_media(quick_cli, video=True)

    records = caption(
        quick_cli,
        eyes,
        entries,
        CAPFLOW_STAGE_QUEUES=json.dumps({"summarize": "words", "score": "words"}),
        CAPFLOW_QUEUE_MODELS=json.dumps({"words": str(words)}),
    )

    pictures = [expected_picture(eyes, path) for path in (first, second)]
    check_media(quick_cli, [*pictures, expected_video(eyes, video)])
    tokenizer = AutoTokenizer.from_pretrained(words)
    texts = [line for line in asked(quick_cli) if line["model"] == str(words)]
    assert len(texts) == 2 * len(records)
    assert all(record["overall"] in (1, 2, 3) for record in records)
    for line in texts:
        assert tokenizer(line["text"])["input_ids"] == line["token_ids"]
        assert load_catalogue(None).system.strip() in line["text"]
        assert "_pad|>" not in line["text"]
    assert all(any(record["caption"] in line["text"] for line in texts) for record in records)
