from __future__ import annotations

import pytest

from capflow_tasks.entries import media_of, task_of
from capflow_tasks.errors import BadEntry, WorkflowError
from capflow_tasks.records import JsonObject, Modality

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO


def known_tasks(name: str) -> str:
    if name.lower() != "natural":
        raise WorkflowError("no such domain; allowed: Natural")
    return "Natural"


@pytest.mark.parametrize(
    ("entry", "media"),
    [
        ({"image": "a.jpg"}, [(IMAGE, "a.jpg")]),
        ({"image": ["a.jpg", "b.jpg"]}, [(IMAGE, "a.jpg"), (IMAGE, "b.jpg")]),
        ({"images": ["a.jpg"]}, [(IMAGE, "a.jpg")]),
        ({"image": "a.jpg", "images": ["a.jpg", "b.jpg"]}, [(IMAGE, "a.jpg"), (IMAGE, "b.jpg")]),
        ({"video": "a.mp4"}, [(VIDEO, "a.mp4")]),
        ({"videos": ["a.mp4", "b.mp4"]}, [(VIDEO, "a.mp4"), (VIDEO, "b.mp4")]),
        ({"image": None, "images": [], "video": "a.mp4"}, [(VIDEO, "a.mp4")]),
        ({"image": "", "video": "a.mp4"}, [(VIDEO, "a.mp4")]),
    ],
)
@pytest.mark.parametrize("modality", list(Modality))
def test_the_entrys_own_keys_decide_its_media(
    entry: JsonObject, media: list[tuple[Modality, str]], modality: Modality
) -> None:
    assert media_of(entry, modality) == tuple(media)


def test_an_entry_with_pictures_and_videos_gives_both_the_shards_modality_first() -> None:
    entry = {"image": "a.jpg", "video": "a.mp4"}

    assert media_of(entry, IMAGE) == ((IMAGE, "a.jpg"), (VIDEO, "a.mp4"))
    assert media_of(entry, VIDEO) == ((VIDEO, "a.mp4"), (IMAGE, "a.jpg"))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({}, 'the entry names no media; expected "image", "images", "video", "videos" with a path or'),
        ({"image": " ", "videos": []}, "the entry names no media"),
        ({"image": 7}, '"image" is a number; write a path or a list of paths'),
        ({"image": {"path": "a.jpg"}}, '"image" is an object; write a path'),
        ({"images": ["a.jpg", None]}, '"images" holds null at position 1; write a path'),
        ({"images": ["a.jpg", ""]}, '"images" holds an empty path at position 1; remove it'),
        ({"image": "a.jpg", "video": True}, '"video" is true or false; write a path'),
    ],
)
def test_an_entry_without_usable_media_is_refused_with_the_key(entry: JsonObject, reason: str) -> None:
    with pytest.raises(BadEntry) as refused:
        media_of(entry, IMAGE)

    assert str(refused.value).startswith(reason)


def test_the_entrys_own_task_is_given_by_its_canonical_name() -> None:
    assert task_of({"task": "NATURAL"}, known_tasks) == "Natural"


@pytest.mark.parametrize("entry", [{}, {"task": None}, {"task": ""}])
def test_an_entry_may_leave_its_task_open(entry: JsonObject) -> None:
    assert task_of(entry, known_tasks) is None


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("vqa", '"task": no such domain; allowed: Natural'),
        (["x"], '"task" is a list; write a domain'),
    ],
)
def test_an_unknown_task_is_refused_with_what_is_allowed(task: object, reason: str) -> None:
    with pytest.raises(BadEntry) as refused:
        task_of({"task": task}, known_tasks)

    assert str(refused.value).startswith(reason)
