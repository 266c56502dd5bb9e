"""The demo's world: facts that a picture needs to be looked at for, and captions that can be graded."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from capflow_tasks.captioning.answers import check_text, parse_scores
from capflow_tasks.records import Stage
from world.drawing import draw_frames, draw_picture
from world.facts import FORMS, VALUES, Fact, Scene, falsified, read, write
from world.grading import CORRUPTIONS
from world.measures import area_under_curve, calibration_error, overlap
from world.questions import answer_of, ask, ask_judge, catalogue
from world.scenes import STORIES, draw_scene

EACH_DOMAIN = pytest.mark.parametrize("domain", list(STORIES))

#: The statements that no training picture may show.
HELD_OUT = {
    str(each)
    for form, shape in FORMS.items()
    for values in product(*(VALUES[slot] for slot in shape.slots))
    if (each := Fact(form, values)).is_held_out
}


def scenes(domain: str, count: int, *, is_held_out: bool = False) -> list[Scene]:
    draw = random.Random(f"test/{domain}")
    return [draw_scene(domain, draw, is_held_out=is_held_out) for _ in range(count)]


def pixels(scene: Scene) -> np.ndarray:
    if scene.domain == "Video & Temporal":
        return np.stack([np.asarray(frame) for frame in draw_frames(scene, 8)])
    return np.asarray(draw_picture(scene))


def test_the_world_has_every_domain_of_its_catalogue() -> None:
    assert {domain.name for domain in catalogue().domains} == set(STORIES)


@EACH_DOMAIN
def test_held_out_combinations_occur_in_held_out_scenes_alone(domain: str) -> None:
    assert not any(fact.is_held_out for scene in scenes(domain, 200) for fact in scene.facts)
    for scene in scenes(domain, 20, is_held_out=True):
        assert any(fact.is_held_out for fact in scene.facts)


@EACH_DOMAIN
def test_a_training_picture_s_false_statements_and_captions_show_no_held_out_combination_either(
    domain: str,
) -> None:
    draw = random.Random(domain)
    first, *others = scenes(domain, 60)
    for other in others:
        said = [str(falsified(fact, first.facts, draw)) for fact in first.facts]
        makes = [make for kind, make in CORRUPTIONS.items() if kind not in ("cut off", "garbled")]
        said += [each for make in makes for each in read(make(first, other, draw).text)]
        assert not set(said) & HELD_OUT


@EACH_DOMAIN
def test_the_same_scene_is_the_same_picture_and_another_detail_another(domain: str) -> None:
    draw = random.Random(domain)
    for scene in scenes(domain, 12):
        assert np.array_equal(pixels(scene), pixels(scene))
        if domain == "Knowledge & Education":
            continue  # a false arrow may lead to a word that has no box
        false = falsified(scene.details[0], scene.facts, draw)
        changed = replace(scene, details=(false, *scene.details[1:]))
        assert not np.array_equal(pixels(scene), pixels(changed)), f"{scene.details[0]} looks like {false}"


@EACH_DOMAIN
def test_every_agent_has_an_answer_and_a_caption_reads_as_its_facts(domain: str) -> None:
    draw = random.Random(domain)
    for scene in scenes(domain, 30):
        assert read(write(scene.facts)) == list(map(str, scene.facts))
        for agent in catalogue().resolve(domain).agents:
            if agent.stage is not Stage.SCORE:
                check_text(answer_of(agent, scene))
                assert check_text(ask(agent, scene, draw).instruction)


@EACH_DOMAIN
def test_a_caption_with_an_error_is_graded_below_the_right_one(domain: str) -> None:
    draw = random.Random(domain)
    first, *others = scenes(domain, 30)
    for other in others:
        for kind, make in CORRUPTIONS.items():
            caption = make(first, other, draw)
            is_right = kind == "right" or set(read(caption.text)) == set(map(str, first.facts))
            assert (min(caption.grades.values()) == 3) == is_right or kind in ("cut off", "garbled")
            (judge,) = catalogue().resolve(domain).agents_of(Stage.SCORE)
            scores = parse_scores(ask_judge(first, caption, draw).answer, judge)
            assert scores == caption.grades | {"overall": min(caption.grades.values())}


def test_measures_of_known_answers() -> None:
    scene = scenes("Natural", 1)[0]
    facts = [*scene.facts[1:], falsified(scene.facts[0], scene.facts, random.Random(1))]
    found = overlap(write(facts), scene)
    assert found.precision == found.recall == 1 - 1 / len(scene.facts)
    assert area_under_curve([3, 3, 2], [1, 2]) == pytest.approx(5.5 / 6)
    assert calibration_error([{"a": 0.75, "b": 0.25}] * 4, ["a", "a", "a", "b"]) == 0
