"""One run of the real command with nothing scripted: vLLM on the CPU, by a tiny model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import vllm
from sqlalchemy import Engine, select

from capflow_tasks.engine.revision import revision_of
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.pictures import count_tokens, fit_image
from capflow_tasks.records import Rule
from capflow_tasks.store.tables import AgentResult, Sample
from tests.checkpoints import NOISE_RULES
from tests.conftest import Eventually
from tests.datasets import draw_picture, film_video, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

SMALL, LARGE = (64, 48), (1120, 840)


def vllm_with(model: Path) -> dict[str, str]:
    return {
        "CAPFLOW_ENGINE": "vllm",
        "CAPFLOW_MODEL": str(model),
        "CAPFLOW_MAX_MODEL_LEN": "16384",
        "CAPFLOW_MAX_ANSWER_TOKENS": "48",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }


def test_pictures_and_a_video_are_captioned_and_a_damaged_picture_fails_alone(
    quick_cli: Cli, engine: Engine, tiny_model: Path, eventually: Eventually
) -> None:
    media = quick_cli.folder / "media"
    for number, size in enumerate([SMALL, LARGE, SMALL, LARGE]):
        draw_picture(media / f"{number}.png", number, size)
    damaged = media / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    film_video(media / "clip.mp4")
    entries = [{"id": number, "image": f"{number}.png"} for number in range(4)]
    plan = write_plan(quick_cli.folder, [*entries, {"id": 4, "video": "clip.mp4"}])
    quick_cli.environment |= vllm_with(tiny_model) | {"CAPFLOW_GUARD_OFF": NOISE_RULES}

    answer = quick_cli.run("capflow-produce", plan, "--output", "out")

    assert answer.returncode == 1, answer.stderr + quick_cli.worker_log[-4000:]
    failures = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.failed.jsonl")
    assert [(failed["id"], failed["error"]["kind"]) for failed in failures] == [(3, "media_corrupt")], (
        failures
    )
    records = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["id"] for record in records] == [0, 1, 2, 4]
    for record in records:
        assert record["caption"]
        assert all(record["reports"].values())
        assert {record["overall"], *record["scores"].values()} <= {1, 2, 3}
        assert record["expected_scores"].keys() == {"overall", *record["scores"]}
        assert record["model"] == str(tiny_model)
        assert record["revision"] == revision_of(str(tiny_model))
        assert record["engine"] == f"vllm {vllm.__version__}"
        assert record["sampling"].keys() >= {"max_tokens", "temperature", "top_p"}
    *pictures, video = records
    assert all(0 < record["confidence"] <= 1 for record in pictures)
    assert (video["task"], video["confidence"]) == ("Video & Temporal", None)
    _check_tokens(engine)
    eventually(lambda: _assert_nothing_runs(quick_cli))


def _check_tokens(engine: Engine) -> None:
    """The model got the pixels, and those of one sample once."""
    statement = select(Sample.idx, AgentResult).join(Sample, Sample.id == AgentResult.sample_id)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    routes = {row.idx: row.prompt_tokens for row in rows if row.agent == "router"}
    # The same words and another picture: the difference is the pictures'.
    budget = MediaBudget()
    large, small = (count_tokens(fit_image(*size, budget), budget) for size in (LARGE, SMALL))
    assert routes[1] - routes[0] == large - small
    for idx in (0, 1, 2, 4):
        later = [row for row in rows if row.idx == idx and row.stage in ("reason", "summarize", "score")]
        assert all(row.cached_tokens > 0 for row in later)
    assert all(row.completion_tokens > 0 and row.seconds > 0 for row in rows)


def _assert_nothing_runs(cli: Cli) -> None:
    assert cli.processes() == []


def test_what_random_weights_never_end_is_asked_for_again_and_fails_as_cut_off(
    quick_cli: Cli, tiny_model: Path
) -> None:
    draw_picture(quick_cli.folder / "media" / "0.png", 0, SMALL)
    plan = write_plan(quick_cli.folder, [{"id": 0, "image": "0.png", "task": "Natural"}])
    quick_cli.environment |= vllm_with(tiny_model) | {
        "CAPFLOW_ANSWER_ATTEMPTS": "2",
        "CAPFLOW_MAX_ATTEMPTS": "1",
        "CAPFLOW_GUARD_OFF": json.dumps([rule for rule in Rule if rule != Rule.CUT_OFF]),
    }

    answer = quick_cli.run("capflow", "caption", plan, "--workflow", "fast", "-o", "out")

    assert answer.returncode == 1, answer.stderr + quick_cli.worker_log[-4000:]
    (failed,) = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.failed.jsonl")
    assert failed["error"]["kind"] == "answer_cut_off"
    assert "in each of 2 attempts" in failed["error"]["message"]
