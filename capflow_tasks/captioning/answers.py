"""Parses a model's answer; an answer that cannot be parsed is a BadAnswer, never a default."""

import json
import unicodedata
from collections import Counter
from typing import Any

from capflow_tasks.domains.catalogue import Agent
from capflow_tasks.errors import BadAnswer


def is_grade(value: object) -> bool:
    """Return whether the value is the int 1, 2 or 3; True and 3.0, which equal ints, are refused."""
    return type(value) is int and value in (1, 2, 3)


def parse_scores(text: str, agent: Agent) -> dict[str, int]:
    """Return a judge's grades by dimension, `overall` last. Raises BadAnswer."""
    names = [*agent.dimensions, "overall"]
    try:
        scores = json.loads(text, object_pairs_hook=_unique_names)
    # RecursionError: a model in a loop can nest brackets without end.
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the scores are not JSON ({error}): {_short(text)}") from None
    if not isinstance(scores, dict):
        raise BadAnswer(f"the scores are not a JSON object: {_short(text)}")
    missing = [name for name in names if name not in scores]
    unknown = [name for name in scores if name not in names]
    if missing or unknown:
        faults = [f"no {name!r}" for name in missing] + [f"unknown {_short(name)}" for name in unknown]
        raise BadAnswer(f"the scores are not the ones asked for: {', '.join(faults)}")
    for name in names:
        if not is_grade(scores[name]):
            raise BadAnswer(f"the score {name!r} is {_short(scores[name])}, not 1, 2 or 3")
    return {name: scores[name] for name in names}


def check_text(text: str) -> str:
    """Strip the text. Raises BadAnswer when it has no visible character."""
    # Control, format, unassigned and separator characters are not visible, nor is broken UTF-8.
    if all(unicodedata.category(char)[0] in "CZ" or char == "\N{REPLACEMENT CHARACTER}" for char in text):
        raise BadAnswer(f"the answer holds no text: {_short(text)}")
    return text.strip()


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if repeated:
        raise BadAnswer(f"the score {_short(repeated[0])} is given twice")
    return dict(pairs)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
