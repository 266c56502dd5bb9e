"""Fills an agent's prompt. Knows nothing of where the texts come from or of the engine.

What an agent or a stranger's file wrote is data: it stands in tags that it cannot close, is never searched
for placeholders, and cannot pose as a chat template's control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from string import Template

from capflow_tasks.domains.catalogue import Agent, Catalogue, Dimension, Domain
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import JsonObject, Span, Stage, clock

#: Begins <|im_end|> and the like, which a tokenizer takes for control tokens wherever they stand in a prompt.
_CONTROL_TOKEN = re.compile(r"<(?=\|)")

#: Between an agent's name and the window that it was asked about; no domain file can have it in a name.
WINDOW_MARK = "@"
#: What `$window` says where there is but one.
WHOLE_VIDEO = "the whole video"


def instruction_for(
    agent: Agent, domain: Domain, reports: Mapping[str, str], window: str = WHOLE_VIDEO
) -> str:
    """The agent's prompt with its placeholders filled.

    `reports` holds text by agent name, that of a window by `name@start-end`; `window` says what part of the
    video the agent gets. What `agent.sees` names and is not there, as when a run leaves out a
    stage, is left out of the prompt too; a judge without a caption raises BadEntry.
    """
    names = [name for seen in agent.sees for name in spoken_as(seen, reports)]
    texts = {name: _CONTROL_TOKEN.sub("< ", reports[name]) for name in names}
    report, caption = (_free_tag(tag, texts.values()) for tag in ("report", "caption"))
    captioner = domain.captioner.name if agent.stage is Stage.SCORE else None
    if captioner and captioner not in texts:
        raise BadEntry(f"there is no caption to score; let {captioner} write one first")
    sections = [_section(report, text, name) for name, text in texts.items() if name != captioner]
    return Template(agent.prompt).substitute(
        domain=domain.name,
        window=window,
        reports="\n\n".join(sections),
        caption=_section(caption, texts[captioner]) if captioner else "",
        dimensions="\n".join(_rubric(name, dimension) for name, dimension in agent.dimensions.items()),
    )


def spoken_as(name: str, reports: Iterable[str]) -> list[str]:
    """The names under which an agent has spoken: its own, or one for each window in the order of time."""
    found = [each for each in reports if each.partition(WINDOW_MARK)[0] == name]
    # Hours have two digits or more.
    return sorted(found, key=lambda each: (each.find(":"), each))


def window_text(number: int, spans: Sequence[Span]) -> str:
    """What `$window` says of the window at `number` of a video's `spans`."""
    start, end, whole = map(clock, (spans[number].start, spans[number].end, spans[-1].end))
    return f"part {number + 1} of {len(spans)} of a longer video, from {start} to {end} of {whole}"


def router_instruction(catalogue: Catalogue) -> str:
    """The router's prompt, with one line per letter."""
    lines = [
        f"{letter}. {domain.name}{_in_parentheses(domain.subdomains)}: {domain.description}"
        for letter, domain in catalogue.letters.items()
    ]
    return Template(catalogue.router.prompt).substitute(domains="\n".join(lines))


def scores_schema(agent: Agent) -> JsonObject:
    """JSON schema of a judge's answer: each dimension in order, then `overall`, all from 1 to 3."""
    names = [*agent.dimensions, "overall"]
    return {
        "type": "object",
        "properties": {name: {"type": "integer", "enum": [1, 2, 3]} for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _free_tag(name: str, texts: Iterable[str]) -> str:
    """The first of `name`, `name-2`, `name-3`, ... that no text uses as a tag: none can end its section."""
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


def _in_parentheses(words: tuple[str, ...]) -> str:
    return f" ({', '.join(words)})" if words else ""
