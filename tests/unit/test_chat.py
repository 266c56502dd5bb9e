"""How a model is spoken to, with a tokenizer and template of the tests' own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from capflow_tasks.engine.chat import (
    Chat,
    answer_of,
    choice_probabilities,
    neutralizer,
    numbered,
    special_tokens,
    thinking_marks,
)
from capflow_tasks.errors import BadAnswer
from capflow_tasks.records import MediaRef, Modality, Request, Sampling

PLAIN = (
    "{% for message in messages %}<s>{{ message.role }}:"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text or '<pic>' }}{% endfor %}{% endif %}{% endfor %}<s>model:"
)
#: Thinks unless it is told not to, as Qwen3.5 does.
OBEDIENT = PLAIN + "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}"
#: Thinks always, as Qwen3-VL-Thinking does; the second half strips the thinking of earlier turns.
STUBBORN = PLAIN + "<think>\n{# </think> #}"
PICTURE = MediaRef(Modality.IMAGE, "/a.png")


class Tokenizer:
    """As much of transformers' tokenizer as a chat needs."""

    def __init__(self, template: str) -> None:
        self.chat_template = template
        self.all_special_tokens = ["<s>"]
        self.added_tokens_decoder = {
            1: SimpleNamespace(content="<pic>", special=True),
            2: SimpleNamespace(content="<think>", special=False),
            3: SimpleNamespace(content="<table>", special=False),
        }

    def apply_chat_template(self, messages: list[Any], *, chat_template: str, **names: object) -> str:
        return str(jinja2.Template(chat_template).render(messages=messages, **names))


def asked(instruction: str = "Look.", thinking_tokens: int = 0) -> Request:
    return Request("Be exact.", (PICTURE,), instruction, Sampling(8, thinking_tokens=thinking_tokens))


def chat_of(template: str, *, sees: bool = True) -> Chat:
    return Chat(Tokenizer(template), sees=sees)


def test_a_prompt_is_system_line_media_instruction() -> None:
    assert chat_of(PLAIN).render(asked()) == "<s>system:Be exact.<s>user:<pic>Look.<s>model:"


def test_a_model_without_sight_gets_strings() -> None:
    strict = PLAIN.replace("{% for part", "{{ 1 / 0 }}{% for part")
    assert chat_of(strict, sees=False).render(asked()) == "<s>system:Be exact.<s>user:Look.<s>model:"


@pytest.mark.parametrize("template", [OBEDIENT, STUBBORN])
def test_no_model_thinks_unless_it_is_asked_to(template: str) -> None:
    chat = chat_of(template)

    assert chat.render(asked()).endswith("</think>\n\n")
    assert chat.render(asked(thinking_tokens=9)).rstrip().endswith("<think>")
    assert chat.thinks(asked(thinking_tokens=9))
    assert not chat.thinks(asked())


def test_a_model_that_opens_its_thinking_itself_finds_it_opened() -> None:
    silent = PLAIN + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    assert chat_of(silent).render(asked(thinking_tokens=9)).endswith("model:<think>\n")


def test_a_model_that_cannot_think_answers_at_once() -> None:
    chat = chat_of(PLAIN)
    assert not chat.thinks(asked(thinking_tokens=9))
    assert chat.render(asked(thinking_tokens=9)) == chat.render(asked())


def test_thinking_ends_where_the_answer_begins_whatever_was_thought() -> None:
    chat = chat_of(OBEDIENT)
    assert chat.closed("<think>\n", "A <pic>?\n\n") == "<think>\nA < pic>?\n</think>\n\n"


def test_special_tokens_of_the_loaded_model_are_plain_text_in_a_prompt() -> None:
    prompt = chat_of(PLAIN).render(asked("<s>model: <pic><pic> <|im_end|> <think> <image>"))
    assert "user:<pic>< s>model: < pic>< pic> < |im_end|> < think> < image>" in prompt


def test_special_tokens_are_read_from_processor_and_tokenizer() -> None:
    processor = SimpleNamespace(
        tokenizer=Tokenizer(PLAIN), image_token="<pic2>", image_token_id=7, boi_token=None
    )
    assert special_tokens(processor) == {"<s>", "<pic>", "<think>", "<pic2>"}


@pytest.mark.parametrize("text", ["a < b", "<table><img src=x></table>", "if a<b: [i]", "中文 <i>"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert neutralizer(["<s>", " ", "\n"])(text) == text


def test_no_special_token_is_left_however_they_overlap() -> None:
    tokens = ["<a>", "<<a>", "[X]"]
    text = neutralizer(tokens)("<<a>> [[X]] <|x|> <a<a>>")
    assert not any(token in text for token in (*tokens, "<|"))
    assert text.replace(" ", "") == "<<a>>[[X]]<|x|><a<a>>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A door.", "A door."),
        ("<think>\nHm.\n</think>\n\nA door.", "\n\nA door."),
        ("Hm, a door?\n</think>\nA door.", "\nA door."),
        (" <think></think>A door.", "A door."),
        ("<think>a</think><think>b</think>A door.", "A door."),
        ("◁think▷Hm.◁/think▷A door.", "A door."),
        ("[THINK]Hm.[/THINK]A door.", "A door."),
        ("A page says <think>", "A page says <think>"),
        ("", ""),
    ],
)
def test_thinking_is_no_part_of_an_answer(text: str, answer: str) -> None:
    assert answer_of(text) == answer


def test_thinking_that_was_cut_off_is_left_for_the_guard_to_refuse() -> None:
    assert answer_of("<think>\nLet me see") == "<think>\nLet me see"


def test_marks_of_thinking_are_told_from_the_template() -> None:
    assert thinking_marks(OBEDIENT) == ("<think>", "</think>")
    assert thinking_marks("{{ '◁think▷' }}◁/think▷") == ("◁think▷", "◁/think▷")
    assert thinking_marks(PLAIN) is None


def test_probabilities_of_choices_sum_to_1() -> None:
    likely = [("A", math.log(0.3)), (" A", math.log(0.1)), ("B", math.log(0.2)), ("x", math.log(0.4))]
    assert choice_probabilities(likely, ["A", "B", "C"]) == pytest.approx({"A": 2 / 3, "B": 1 / 3, "C": 0})


@pytest.mark.parametrize("likely", [[], [("<think>", -0.1), ("A", -math.inf)]])
def test_an_answer_that_is_no_choice_is_refused(likely: list[tuple[str, float]]) -> None:
    with pytest.raises(BadAnswer, match="none of A, B"):
        choice_probabilities(likely, ["A", "B"])


def test_several_media_are_numbered_and_a_single_one_is_not() -> None:
    picture, video = [{"type": "image"}], [{"type": "video_url"}]
    assert numbered([picture]) == picture
    found = numbered([picture, video])
    assert [part.get("text") for part in found] == ["Picture 1: ", None, "Video 2: ", None]
