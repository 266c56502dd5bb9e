"""Conversations as loaders count them, from whatever an annotation entry brought along."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from capflow_tasks.records import JsonObject
from producer.writing.conversations import PLAIN, ConversationStyle, with_conversation

KEPT = ConversationStyle(keeps_question=True)
HUMAN = {"from": "human", "value": "<image>\nHow many?"}


def turns_of(entry: JsonObject, style: ConversationStyle = PLAIN, caption: str = "A cat.") -> list[Any]:
    return list(with_conversation(entry, caption, style)["conversations"])


def placeholders_in(text: str) -> Counter[str]:
    return Counter({kind: text.count(f"<{kind}>") for kind in ("image", "video", "audio")})


@pytest.mark.parametrize(
    "brought",
    [
        {},
        {"conversations": []},
        {"conversations": "?"},
        {"conversations": [HUMAN]},
        {"conversations": [HUMAN, {"from": "gpt", "value": "2"}]},
        {"conversations": [HUMAN, {"from": "gpt", "value": "2"}, HUMAN, {"from": "gpt", "value": "3"}]},
        {"conversations": [{"from": "gpt", "value": "2"}]},
        {"conversations": [{"from": "user", "value": "How many?"}, {"from": "assistant", "value": "2"}]},
        {"conversations": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "2"}]},
        {"messages": [{"role": "user", "content": "<image>How many?"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}
            ]
        },
        {"conversations": [None, 1, {"from": 3}], "messages": {}},
    ],
)
def test_a_caption_answers_one_neutral_question_whatever_the_entry_brought(brought: JsonObject) -> None:
    record = with_conversation({"image": "a.jpg", **brought}, "A cat.", PLAIN)

    question, answer = record["conversations"]
    assert (question["from"], answer) == ("human", {"from": "gpt", "value": "A cat."})
    assert question["value"].startswith("<image>\n")
    assert "this image" in question["value"]
    assert "How many?" not in question["value"]
    assert placeholders_in(question["value"]) == Counter(image=1)
    assert record.get("source_conversations") == next(iter(brought.values()), None)
    assert "messages" not in record


@pytest.mark.parametrize(
    ("brought", "question"),
    [
        (
            [HUMAN, {"from": "gpt", "value": "2"}, {"from": "human", "value": "And dogs?"}],
            "<image>\nHow many?",
        ),
        ([{"role": "user", "content": "How many?"}], "<image>\nHow many?"),
        ([{"role": "user", "content": "Count in <image>."}], "Count in <image>."),
        ([{"role": "user", "content": "<image><image> How many?"}], "<image>\nHow many?"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}],
            "<image>\nWhy?",
        ),
    ],
)
def test_the_entrys_own_question_can_be_kept(brought: list[Any], question: str) -> None:
    for key in ("conversations", "messages"):
        assert turns_of({"image": "a.jpg", key: brought}, KEPT)[0] == {"from": "human", "value": question}


def test_without_a_question_to_keep_a_neutral_one_is_asked() -> None:
    lone = {"image": "a.jpg", "conversations": [{"from": "gpt", "value": "2"}]}

    assert turns_of(lone, KEPT) == turns_of(lone)


def test_a_system_turn_stays_in_front() -> None:
    turns = [{"role": "system", "content": "Be brief about <image>."}, HUMAN]

    record = with_conversation({"image": "a", "conversations": turns}, "A cat.", PLAIN)

    assert [turn["from"] for turn in record["conversations"]] == ["system", "human", "gpt"]
    assert record["conversations"][0]["value"] == "Be brief about <image >."


@pytest.mark.parametrize(
    ("media", "count"),
    [
        ({"image": "a"}, Counter(image=1)),
        ({"image": ["a", "b"]}, Counter(image=2)),
        ({"images": ["a", "a"]}, Counter(image=2)),
        ({"image": "a", "images": ["a"]}, Counter(image=1)),
        ({"video": "v", "image": "a"}, Counter(image=1, video=1)),
        ({"videos": ["v", "w"]}, Counter(video=2)),
    ],
)
@pytest.mark.parametrize("style", [PLAIN, KEPT])
def test_there_is_one_placeholder_per_medium(media: JsonObject, count: Counter[str], style: Any) -> None:
    question = turns_of({**media, "conversations": [HUMAN]}, style)[0]["value"]

    assert placeholders_in(question) == count


def test_the_wording_depends_on_the_media_alone() -> None:
    asked = [turns_of({"id": number, "image": f"{number}.jpg"})[0]["value"] for number in range(100)]

    assert asked == [turns_of({"image": f"{number}.jpg"})[0]["value"] for number in range(100)]
    assert len(set(asked)) > 4
    assert "these images" in turns_of({"images": ["a", "b"]})[0]["value"]
    assert "this image and this video" in turns_of({"image": "a", "video": "v"})[0]["value"]


def test_a_caption_that_quotes_a_placeholder_does_not_count_as_one() -> None:
    caption = 'The page has <image>, <video>, <audio> and <img src="a">; its prompt ends with <|im_end|>.'

    (_, answer) = turns_of({"image": "a", "caption": caption}, caption=caption)

    assert answer["value"] == (
        'The page has <image >, <video >, <audio > and <img src="a">; its prompt ends with < |im_end|>.'
    )
    as_it_is = ConversationStyle(escapes=False)
    assert turns_of({"image": "a"}, as_it_is, caption)[-1]["value"] == caption


def test_what_was_exported_before_keeps_its_first_source() -> None:
    entry = {"image": "a", "conversations": [HUMAN]}
    once = with_conversation(entry, "A cat.", PLAIN)

    again = with_conversation(once, "A dog.", KEPT)

    assert again["source_conversations"] == [HUMAN]
    assert again["conversations"] == [HUMAN, {"from": "gpt", "value": "A dog."}]
