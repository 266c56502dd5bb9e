"""Parses a model's answer; an answer that cannot be parsed is a BadAnswer, never a default."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

from capflow_tasks.domains.catalogue import Agent, Dimension
from capflow_tasks.entries import unstorable
from capflow_tasks.errors import BadAnswer
from capflow_tasks.records import Completion, Token

#: More than the longest contexts hold; longer text is a fault of the server.
_MAX_CHARACTERS = 1_000_000
#: What a column of type integer holds.
_MAX_TOKENS = 2**31 - 1


def check_storable(answer: Completion) -> None:
    """Raise BadAnswer for an answer that PostgreSQL cannot store: NaN, NUL, broken text, out of any range."""
    if len(answer.text) > _MAX_CHARACTERS:
        raise BadAnswer(f"the answer has {len(answer.text):,} characters, more than {_MAX_CHARACTERS:,}")
    counts = answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens
    if not all(0 <= count <= _MAX_TOKENS for count in counts):
        raise BadAnswer(f"the answer's token counts are {', '.join(map(str, counts))}")
    parts = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "seconds": answer.seconds,
        "probabilities": dict(answer.probabilities),
    }
    if (reason := unstorable(parts)) is not None:
        fault, _, _ = reason.partition(";")
        raise BadAnswer(f"the answer cannot be stored: {fault}")


def is_grade(value: object) -> bool:
    """Return whether the value is the int 1, 2 or 3; True and 3.0, which equal ints, are refused."""
    return type(value) is int and value in (1, 2, 3)


def overall_grade(grades: Mapping[str, int], dimensions: Mapping[str, Dimension]) -> int:
    """Return the overall grade that follows from those of a judge's dimensions.

    1 when a decisive dimension is 1, or any two are; 3 when all decisive ones are 3, none is 1, and at most
    one is 2; else 2. Where no dimension is decisive, all are: then it is the lowest grade.
    """
    decisive = [grades[name] for name, each in dimensions.items() if each.decisive] or list(grades.values())
    counts = Counter(grades.values())
    if 1 in decisive or counts[1] >= 2:
        return 1
    is_excellent = set(decisive) == {3} and not counts[1] and counts[2] <= 1
    return 3 if is_excellent else 2


def parse_scores(text: str, agent: Agent) -> dict[str, int]:
    """Return a judge's grades by dimension, and `overall`, computed from them, last. Raises BadAnswer."""
    names = list(agent.dimensions)
    answer = _json_object(text)
    missing = [name for name in names if name not in answer]
    unknown = [name for name in answer if name not in (*names, "errors", "overall")]
    if missing or unknown:
        faults = [f"no {name!r}" for name in missing] + [f"unknown {_short(name)}" for name in unknown]
        raise BadAnswer(f"the scores are not the ones asked for: {', '.join(faults)}")
    for name in names:
        if not is_grade(answer[name]):
            raise BadAnswer(f"the score {name!r} is {_short(answer[name])}, not 1, 2 or 3")
    grades = {name: answer[name] for name in names}
    return grades | {"overall": overall_grade(grades, agent.dimensions)}


def softened(shares: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Raise probabilities to the power 1/temperature; they sum to 1 again."""
    if temperature == 1:
        return dict(shares)
    powers = {name: share ** (1 / temperature) for name, share in shares.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()} if total else dict(shares)


_GRADES = ("1", "2", "3")
_NAME = re.compile(r'"([^"]+)"\s*:\s*\Z')


def expected_grades(tokens: Sequence[Token], dimensions: Collection[str]) -> dict[str, float] | None:
    """Return the expected grade of each dimension and their mean as `overall`; None where one is not known.

    It is the mean of the grades, weighted by their probabilities where the answer has the grade (G-Eval, Liu
    et al. 2023, section 2). So it tells apart captions that have the same grade.
    """
    found: dict[str, float] = {}
    text = ""
    for token in tokens:
        if token.text.strip() in _GRADES and (name := _NAME.search(text)) and name[1] in dimensions:
            shares = {
                int(each): probability
                for each, probability in token.probabilities.items()
                if each.strip() in _GRADES
            }
            if (total := sum(shares.values())) > 0:
                found[name[1]] = round(sum(grade * share for grade, share in shares.items()) / total, 3)
        text += token.text
    if not found or found.keys() != set(dimensions):
        return None
    return found | {"overall": round(fmean(found.values()), 3)}


def errors_named(text: str) -> list[str]:
    """Return the errors that a judge's answer names; none where it was not asked for any."""
    try:
        errors = _json_object(text).get("errors")
    except BadAnswer:
        return []
    return [error for error in errors if isinstance(error, str)] if isinstance(errors, list) else []


def _json_object(text: str) -> dict[str, Any]:
    try:
        # Not strict: a grammar that bounds the length of a string lets control characters through.
        answer = json.loads(text, object_pairs_hook=_unique_names, strict=False)
    # RecursionError: a model in a loop can nest brackets without end.
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the scores are not JSON ({error}): {_short(text)}") from None
    if not isinstance(answer, dict):
        raise BadAnswer(f"the scores are not a JSON object: {_short(text)}")
    return answer


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
