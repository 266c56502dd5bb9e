"""How a budget is changed by a domain, and cut down to what a prompt leaves."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from capflow_tasks.media.budget import FrameSampling, MediaBudget, MediaForm, PixelRange, budget_of
from capflow_tasks.media.pictures import count_tokens, fit_image
from capflow_tasks.media.player import VideoFacts
from capflow_tasks.media.video import plan_frames
from capflow_tasks.settings import Settings

TOKEN = 28 * 28


def test_no_change_is_the_same_budget() -> None:
    assert MediaBudget().overridden_by({}) == MediaBudget()


def test_a_change_wins_over_the_settings_and_leaves_the_rest() -> None:
    changes = {"fps": 1, "max_frames": 32, "total_pixels": 4096 * TOKEN, "max_pixels": 600 * TOKEN}
    assert asdict(MediaBudget().overridden_by(changes)) == asdict(MediaBudget()) | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"max_pixels": 4 * TOKEN},
        {"min_pixels": 9000 * TOKEN},
        {"frame_max_pixels": 4 * TOKEN},
        {"frame_min_pixels": 1000 * TOKEN},
        {"frame_min_pixels": 90_000 * TOKEN},
        {"total_pixels": 2 * TOKEN},
        {"total_pixels": TOKEN},
        {"max_frames": 2},
        {"min_frames": 300},
    ],
)
def test_a_change_beyond_the_other_end_of_the_setting_moves_that_too(changes: dict[str, int]) -> None:
    changed = MediaBudget().overridden_by(changes)
    assert changed.min_pixels <= changed.max_pixels
    assert changed.frame_min_pixels <= changed.frame_max_pixels
    assert changed.frame_limit >= 2


@settings(deadline=None)  # the first example imports torch
@given(
    some.integers(160, 30_000),
    some.floats(0.1, 10_000),
    some.tuples(some.integers(16, 8000), some.integers(16, 5000)),
)
def test_a_budget_cut_down_to_so_many_tokens_never_costs_more(
    tokens: int, seconds: float, size: tuple[int, int]
) -> None:
    if max(size) > 50 * min(size):
        return
    video = VideoFacts(max(1, round(seconds * 25)), 0.0, seconds, *size)
    plan = plan_frames(video, MediaBudget().within(tokens))
    assert plan.tokens <= tokens
    assert len(plan.times) % 2 == 0


def test_pixels_are_given_up_before_frames() -> None:
    video = VideoFacts(3000, 0.0, 120.0, 1280, 720)
    budget = MediaBudget(total_pixels=80_000 * TOKEN)
    whole, smaller, fewer = (plan_frames(video, budget.within(tokens)) for tokens in (80_000, 20_480, 4096))
    assert len(whole.times) == len(smaller.times) == 240 > len(fewer.times)
    assert whole.size > smaller.size


#: Qwen3-VL's, as its processor's files say.
QWEN3 = MediaForm(
    token_side=32,
    picture_pixels=PixelRange(256**2, 4096**2),
    frame_pixels=PixelRange(2048, 12_582_912),
    video_pixels=12_582_912,
    sampling=FrameSampling.LINSPACE,
)


@settings(deadline=None)
@given(
    some.floats(0.1, 10_000),
    some.tuples(some.integers(16, 8000), some.integers(16, 5000)),
    some.sampled_from([{}, {"max_pixels": 4 * TOKEN}, {"min_pixels": 30_000 * TOKEN}, {"max_frames": 256}]),
)
def test_media_have_sizes_that_the_models_processor_leaves_alone(
    seconds: float, size: tuple[int, int], changes: dict[str, int]
) -> None:
    if max(size) > 50 * min(size):
        return
    budget = MediaBudget().overridden_by(changes).for_model(QWEN3)
    picture = fit_image(*size, budget)
    assert picture[0] % 32 == picture[1] % 32 == 0
    assert 256**2 <= picture[0] * picture[1] <= 4096**2
    plan = plan_frames(VideoFacts(max(1, round(seconds * 25)), 0.0, seconds, *size), budget)
    assert plan.size[0] % 32 == plan.size[1] % 32 == 0
    assert 4096 <= len(plan.times) * plan.size[0] * plan.size[1] <= 25_165_824
    assert plan.tokens == len(plan.times) // 2 * plan.size[0] * plan.size[1] // 32**2


def test_a_processor_that_makes_its_own_sizes_gets_pictures_as_they_are() -> None:
    budget = MediaBudget().for_model(MediaForm(token_side=None))
    assert fit_image(64, 47, budget) == (64, 47)
    assert fit_image(4000, 3000, budget) < (1200, 900)
    assert count_tokens((64, 47), budget) == 0


def test_prompts_of_about_one_length_give_a_video_the_same_budget() -> None:
    assert MediaBudget().within(5000) == MediaBudget().within(4900) != MediaBudget().within(4800)


#: The budgets of the table in docs/how-to/caption-videos.md, by column.
DOCUMENTED = (
    dict[str, float](),
    {"fps": 1.0, "max_frames": 32, "total_pixels": 1_605_632, "frame_min_pixels": 50_176},
    {"fps": 2.0, "max_frames": 256, "total_pixels": 12_845_056, "frame_min_pixels": 75_264},
)


def test_the_costs_in_the_manual_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "caption-videos.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) s, (\d+) x (\d+) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for seconds, width, height, *columns in rows:
        facts = VideoFacts(int(seconds) * 30, 0.0, float(seconds), int(width), int(height))
        for changes, column in zip(DOCUMENTED, columns, strict=True):
            plan = plan_frames(facts, budget_of(Settings()).overridden_by(changes))
            assert column == f"{len(plan.times)} x {plan.size[0]} x {plan.size[1]} = {plan.tokens}"
