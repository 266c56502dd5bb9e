"""Verifies one caption: its claims are asked of the media one by one, and those denied are removed.

Each question is asked without the caption and the other claims: a model that sees them believes them. The
calls share the prefix of the captioner's own call, system line and media, which is in the engine's cache.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from capflow_tasks.captioning import quotes
from capflow_tasks.domains import prompts
from capflow_tasks.domains.verifier import SENTENCES, Verifier
from capflow_tasks.records import Completion, JsonObject, Sampling, rounded
from capflow_tasks.store.tables import storable

#: The claims that are asked about, at most, and the longest of them, characters.
MOST_CLAIMS, _MOST_CHARACTERS = 60, 300
_YES, _NO = "yes", "no"

_LISTING = Sampling(max_tokens=2048, temperature=0.0)
_ANSWERING = Sampling(max_tokens=1, temperature=0.0)
#: A sentence, or a part of one before a semicolon, with the blanks behind it. A sign inside of a number or a
#: name, where no blank follows, ends none; the signs of scripts without blanks always end one.
_SENTENCE = re.compile(r"\S.*?(?:[.!?;]\s+|[。！？；][」』”’）]*\s*|\Z)", re.DOTALL)
#: The sign that ends a caption whose last sentence went on behind a semicolon.
_STOPS = str.maketrans(";；", ".。")


class Verdict(StrEnum):
    KEPT = "kept"
    UNSURE = "unsure"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Question:
    """One call of a verification."""

    instruction: str
    #: None for what the captioner's own sampling is right for.
    sampling: Sampling | None
    choices: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    has_media: bool = True
    #: The claim that it asks about, by number.
    claim: int | None = None


@dataclass(slots=True)
class Verification:
    """One caption on its way through its verification."""

    verifier: Verifier
    caption: str
    #: What it quotes and nobody read in its pictures.
    unsupported_quotes: Sequence[str] = ()
    #: JSON schema of the caption; None for text.
    schema: Mapping[str, Any] | None = None
    #: The caption without what was denied; None while it is as it was.
    rewritten: str | None = None
    #: What the rewrite says, where it is JSON.
    data: JsonObject | None = None
    #: Of all calls.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    #: None until they are listed.
    _claims: list[str] | None = None
    #: Probability of "yes" by claim; None where the answer was neither.
    _shares: dict[int, float | None] = field(default_factory=dict)
    _is_asked_to_rewrite: bool = False

    def __post_init__(self) -> None:
        if self.verifier.claims.strip() == SENTENCES:
            self._claims = [_bare(each) for each in _SENTENCE.findall(self.caption)][:MOST_CLAIMS]

    def questions(self) -> list[Question]:
        """Return the calls that can be made now; none once the caption is verified."""
        if self._claims is None:
            listing = prompts.verification(self.verifier.claims, caption=self.caption)
            return [Question(listing, _LISTING, schema=_CLAIMS, has_media=False)]
        asked = [number for number in range(len(self._claims)) if number not in self._shares]
        if asked:
            return [self._question(number) for number in asked]
        if self._is_asked_to_rewrite or not (self._dropped or self.unsupported_quotes):
            return []
        self._is_asked_to_rewrite = True
        if self.verifier.claims.strip() == SENTENCES:
            self._cut()
            return []
        rewriting = prompts.verification(
            self.verifier.rewrite,
            caption=self.caption,
            claims=self._dropped,
            quotes=self.unsupported_quotes,
        )
        return [Question(rewriting, None, schema=self.schema)]

    def take(self, question: Question, answer: Completion | None, data: JsonObject | None = None) -> None:
        """Take the answer to a question; None, or a rewrite without text, where there is no usable one.

        `data` is what a rewrite of JSON says.
        """
        if answer:
            self._count(answer)
        if question.claim is not None:
            self._shares[question.claim] = answer.probabilities.get(_YES) if answer else None
        elif self._claims is None:
            self._claims = _claims_in(answer.text) if answer else []
        elif answer:
            self.rewritten, self.data = answer.text or None, data

    def _count(self, answer: Completion) -> None:
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens
        self.seconds += answer.seconds

    @property
    def found(self) -> JsonObject:
        """The claims with what became of each, and the caption as it was."""
        claims = [
            {"claim": claim, "yes": rounded(self._shares.get(number)), "verdict": self._verdict(number)}
            for number, claim in enumerate(self._claims or ())
        ]
        return {"claims": claims, "draft": self.caption if self.rewritten else None}

    @property
    def text(self) -> str:
        return "\n".join(f"{each['verdict']}: {each['claim']}" for each in self.found["claims"])

    @property
    def counts(self) -> JsonObject:
        """Claims by verdict, and whether the caption was rewritten; as stored with it."""
        verdicts = Counter(map(self._verdict, range(len(self._claims or ()))))
        counts: JsonObject = {verdict.value: verdicts[verdict] for verdict in Verdict}
        return counts | {"is_rewritten": self.rewritten is not None}

    def _question(self, number: int) -> Question:
        claim = (self._claims or [])[number]
        instruction = prompts.verification(self.verifier.question, claim=claim)
        return Question(instruction, _ANSWERING, choices=(_YES, _NO), claim=number)

    def _verdict(self, number: int) -> Verdict:
        share = self._shares.get(number)
        if share is None or self.verifier.drop_below <= share < self.verifier.keep_from:
            return Verdict.UNSURE
        return Verdict.KEPT if share >= self.verifier.keep_from else Verdict.DROPPED

    @property
    def _dropped(self) -> list[str]:
        numbered = enumerate(self._claims or ())
        return [claim for number, claim in numbered if self._verdict(number) is Verdict.DROPPED]

    def _cut(self) -> None:
        """Leave out the sentences that were denied, or that quote what nobody read; never all of them."""
        unread = set(self.unsupported_quotes)
        denied = set(self._dropped)
        left = [
            sentence
            for sentence in _SENTENCE.findall(self.caption)
            if _bare(sentence) not in denied and unread.isdisjoint(quotes.quoted_in(sentence))
        ]
        text = "".join(left).strip()
        self.rewritten = text[:-1] + text[-1:].translate(_STOPS) or None


_CLAIMS: JsonObject = {
    "type": "object",
    "properties": {
        "claims": {
            "type": "array",
            "items": {"type": "string", "maxLength": _MOST_CHARACTERS},
            "maxItems": MOST_CLAIMS,
        }
    },
    "required": ["claims"],
    "additionalProperties": False,
}


def _bare(sentence: str) -> str:
    """Return a sentence as a claim, without the sign that ends it."""
    return sentence.strip().rstrip(".;。；")


def _claims_in(text: str) -> list[str]:
    """Return the claims that a listing names; none where it cannot be parsed."""
    try:
        listed = json.loads(text, strict=False)["claims"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    texts = (
        [storable(each.strip()) for each in listed if isinstance(each, str)]
        if isinstance(listed, list)
        else []
    )
    return list(dict.fromkeys(filter(None, texts)))[:MOST_CLAIMS]
