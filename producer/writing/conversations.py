"""Make the conversation that a model trains on: a question about the media, and the caption as its answer.

Loaders count placeholders: LLaMA-Factory, ms-swift and Qwen's fine-tuning refuse a sample whose turns hold
more or fewer of them than it has media, and LLaVA trains on wrong token counts. So the human turn holds
exactly one per medium, and text that reads like one is escaped everywhere else.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Any
from zlib import crc32

from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import JsonObject, Modality

#: A picture or video as (kind, path as written).
Medium = tuple[Modality, str]

#: The speakers of a conversation by the names that data sets give them.
_SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model"), "gpt"),
}
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
#: The beginning of a control token of a chat template, such as <|image_pad|>.
_CONTROL_TOKEN = re.compile(r"<(?=\|\w+\|>)")


@dataclass(frozen=True, slots=True)
class ConversationStyle:
    #: Asks the entry's own first question instead of a neutral one.
    keeps_question: bool = False
    #: Writes text that loaders take for a placeholder so that they do not.
    escapes: bool = True


PLAIN = ConversationStyle()


def with_conversation(record: JsonObject, caption: str, style: ConversationStyle) -> JsonObject:
    """Return the record with `conversations` about its media; what it brought is kept as `source_...`.

    A record that brings `source_conversations` was exported before; its question is taken from there.
    """
    kept = {key: value for key, value in record.items() if key != "messages"}
    if "source_conversations" not in record:
        brought = [record[key] for key in ("conversations", "messages") if key in record]
        kept |= zip(("source_conversations", "source_messages"), brought, strict=False)
    turns = _turns(kept.get("source_conversations"))
    system = [{"from": "system", "value": text} for speaker, text in turns if speaker == "system"][:1]
    asked = next((text for speaker, text in turns if speaker == "human"), "") if style.keeps_question else ""
    question = {"from": "human", "value": _question(media_listed(record), asked)}
    answer = {"from": "gpt", "value": caption}
    if style.escapes:
        for turn in (*system, answer):
            turn["value"] = escaped(turn["value"])
    return {**kept, "conversations": [*system, question, answer]}


def media_listed(entry: JsonObject) -> tuple[Medium, ...]:
    """Return the pictures, then the videos that loaders find in an entry; a repeated path counts again."""
    try:
        return media_of(entry, Modality.IMAGE, keep_repeats=True)
    except BadEntry:
        return ()


def escaped(text: str) -> str:
    """Write <image> as <image >, which is the same tag of HTML, and <|image_pad|> as < |image_pad|>."""
    return _CONTROL_TOKEN.sub("< ", _PLACEHOLDER.sub(r"<\1 >", text))


def _turns(given: Any) -> list[tuple[str, str]]:
    """Return (speaker, text) of each turn of a conversation in any of the usual forms."""
    turns = [turn for turn in given if isinstance(turn, dict)] if isinstance(given, list) else []
    named = ((turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns)
    return [(_SPEAKERS.get(str(name).lower(), ""), _text(content)) for name, content in named]


def _text(content: Any) -> str:
    """Return a turn's text, whose content may be a list of typed parts; their media are left out."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(text for text in parts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _question(media: Sequence[Medium], asked: str) -> str:
    """Return what was asked, or a neutral question, with one placeholder per medium."""
    kinds = [kind.value for kind, _ in media]
    if Counter(_PLACEHOLDER.findall(asked)) == Counter(kinds):
        return asked
    text = _PLACEHOLDER.sub("", asked).strip() or _neutral_question(media)
    return "".join(f"<{kind}>\n" for kind in kinds) + text


def _neutral_question(media: Sequence[Medium]) -> str:
    """Choose a wording; the same media always get the same one."""
    wordings = _wordings()
    wording = wordings[crc32("\n".join(path for _, path in media).encode()) % len(wordings)]
    counts = Counter(kind.value for kind, _ in media)
    named = " and ".join(f"this {kind}" if count == 1 else f"these {kind}s" for kind, count in counts.items())
    return wording.substitute(media=named)


@cache
def _wordings() -> list[Template]:
    text = resources.files("producer.writing").joinpath("questions.txt").read_text("utf-8")
    return [Template(line) for line in text.splitlines()]
