"""Fills an agent's prompt.

Text by an agent or from a user's file is data: it is enclosed in tags that it cannot close, and is not
searched for placeholders. The engine, which knows the model's special tokens, makes them plain text.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from string import Template, ascii_uppercase
from typing import Any

from capflow_tasks.domains.catalogue import Agent, Catalogue, Dimension, Domain
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import LANGUAGES, JsonObject, Span, Stage, clock

#: Separates an agent's name from the window that its answer is about; domain files allow it in no name.
WINDOW_MARK = "@"
#: The most errors that a judge names, and the longest of them, in characters.
MAX_ERRORS, MAX_ERROR_LENGTH = 5, 80
#: `$window` of a video that is not cut.
WHOLE_VIDEO = "the whole video"
#: What a prompt that speaks of one picture begins with when there are several.
_PLURAL = Template(
    'Above are $count pictures, numbered in their order. Below, "this picture" means all of them together: '
    'cover each, name it by its number ("picture 2"), and say how they belong together.\n\n'
)


def instruction_for(
    agent: Agent,
    domain: Domain,
    reports: Mapping[str, str],
    window: str = WHOLE_VIDEO,
    pictures: int = 1,
    asked: Mapping[str, str] | None = None,
) -> str:
    """Fill the placeholders of the agent's prompt.

    `reports` holds the answers by agent name, `name@start-end` for a window; `window` names the part of the
    video that the agent gets, and `pictures` is how many it gets. Agents in `agent.sees` without an answer,
    as when a run skips a stage, are left out. `asked` comes from `question_of`, for an agent that answers a
    question. Raises BadEntry for a judge without a caption.
    """
    names = [name for seen in agent.sees for name in answer_names(seen, reports)]
    texts = {name: reports[name] for name in names}
    report, caption = (_free_tag(tag, texts.values()) for tag in ("report", "caption"))
    captioner = domain.captioner.name if agent.stage is Stage.SCORE else None
    if captioner and captioner not in texts:
        raise BadEntry(f"there is no caption to score; let {captioner} write one first")
    notes = {agent.name: f"{agent.note}\n" for agent in domain.agents if agent.tool}
    sections = [
        _section(report, notes.get(name, "") + text, name)
        for name, text in texts.items()
        if name != captioner
    ]
    filled = Template(agent.prompt).substitute(
        domain=domain.name,
        window=window,
        reports="\n\n".join(sections),
        caption=_section(caption, texts[captioner]) if captioner else "",
        dimensions="\n".join(_rubric(name, dimension) for name, dimension in agent.dimensions.items()),
        **(asked or {}),
    )
    if pictures > 1:
        filled = _PLURAL.substitute(count=pictures) + filled
    if agent.schema is not None:
        schema = json.dumps(agent.schema, ensure_ascii=False)
        filled = f"{filled.rstrip()}\nAnswer with one JSON object by this schema, and nothing else:\n{schema}"
    if agent.answer not in ("text", "json") or agent.verbatim or agent.language == "any":
        return filled
    language = LANGUAGES[agent.language]
    return f"{filled.rstrip()}\nWrite in {language}; text that you quote keeps its own language."


def writing_again(prompt: str, caption: str, errors: Sequence[str]) -> str:
    """Fill the addition to a captioner's prompt by which it writes a caption again, without its errors."""
    tag = _free_tag("caption", [caption, *errors])
    listed = "\n".join(f"- {error}" for error in errors) or "- (none named)"
    filled = Template(prompt).substitute(
        caption=_section(tag, caption), errors=_section(f"{tag}-errors", listed)
    )
    return f"\n\n{filled}"


def verification(
    prompt: str, *, caption: str = "", claim: str = "", claims: Sequence[str] = (), quotes: Sequence[str] = ()
) -> str:
    """Fill one of the prompts by which a caption is verified."""
    tag, claim_tag = _free_tag("caption", [caption, *claims, *quotes]), _free_tag("claim", [claim])
    listed = {
        name: _section(f"{tag}-{name}", "\n".join(f"- {each}" for each in texts) or "- (none)")
        for name, texts in (("claims", claims), ("quotes", quotes))
    }
    one = f"<{claim_tag}>{claim}</{claim_tag}>"
    return Template(prompt).substitute(caption=_section(tag, caption), claim=one, **listed).strip()


def answer_names(name: str, reports: Iterable[str]) -> list[str]:
    """Return the names of an agent's answers: its own, or one per window in order of time."""
    found = [each for each in reports if each.partition(WINDOW_MARK)[0] == name]
    # hours may have more than two digits: shorter ones come first
    return sorted(found, key=lambda each: (each.find(":"), each))


def window_text(number: int, spans: Sequence[Span]) -> str:
    """Describe the window `spans[number]` of a video, for `$window`."""
    start, end, whole = map(clock, (spans[number].start, spans[number].end, spans[-1].end))
    return f"part {number + 1} of {len(spans)} of a longer video, from {start} to {end} of {whole}"


def router_instruction(catalogue: Catalogue) -> str:
    """Fill the router's prompt, with one line per letter."""
    lines = []
    for letter, domain in catalogue.letters.items():
        examples = f" ({', '.join(domain.subdomains)})" if domain.subdomains else ""
        lines.append(f"{letter}. {domain.name}{examples}: {domain.description}")
    return Template(catalogue.router.prompt).substitute(domains="\n".join(lines))


def schema_of(agent: Agent) -> Mapping[str, Any] | None:
    """Return the JSON schema that the agent's answer must follow; None for text and letters."""
    return scores_schema(agent) if agent.answer == "scores" else agent.schema


def scores_schema(agent: Agent) -> JsonObject:
    """Return the JSON schema of a judge's answer: the errors found, then a grade from 1 to 3 per dimension.

    A judge that must name errors first grades by what it named.
    """
    error = {"type": "string", "maxLength": MAX_ERROR_LENGTH}
    grades = {name: {"type": "integer", "enum": [1, 2, 3]} for name in agent.dimensions}
    properties = {"errors": {"type": "array", "items": error, "maxItems": MAX_ERRORS}, **grades}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def letters_of(entry: JsonObject) -> tuple[str, ...]:
    """Return a letter for each of the entry's `choices`. Raises BadEntry unless there are 2 to 26."""
    choices = entry.get("choices")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        raise BadEntry('"choices" is no list of 2 to 26 texts; write one')
    return tuple(ascii_uppercase[: len(choices)])


def question_of(entry: JsonObject) -> dict[str, str]:
    """Return what fills `$question` and `$choices`, with one line per letter. Raises BadEntry."""
    lines = zip(letters_of(entry), entry["choices"], strict=True)
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in lines)
    return {"question": str(entry.get("question", "")), "choices": listed}


def _free_tag(name: str, texts: Iterable[str]) -> str:
    """Return the first of `name`, `name-2`, ... that no text uses as a tag, so that none can close it."""
    taken = "\n".join(texts)
    candidates = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(tag for tag in candidates if not re.search(rf"<[\s/]*{tag}\b", taken, re.IGNORECASE))


def _section(tag: str, text: str, author: str = "") -> str:
    name, _, span = author.partition(WINDOW_MARK)
    source = (f' from="{name}"' if name else "") + (f' time="{span}"' if span else "")
    return f"<{tag}{source}>\n{text}\n</{tag}>"


def _rubric(name: str, dimension: Dimension) -> str:
    grades = [f"  {grade}: {dimension.grades[grade]}" for grade in sorted(dimension.grades)]
    return "\n".join([f"{name}: {dimension.description}", *grades])
