"""Questions and facts about media, from files with a JSON object per line, and what the answers come to.

A question file has `media` (path, or list of paths, of one sample), `question`, `choices` and `answer`, which
is one of the choices. A fact file has `media` and `facts`, a list of statements. A caption's fact is asked
like a question: is it true, by the caption alone?
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.entries import shown, type_name
from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject
from producer.evaluation.measures import NOTHING, Overlap, Part
from producer.evaluation.samples import Key, place_of
from producer.reading.caption_files import read_captions

#: The last choice of every question, which is right for none.
CANNOT_TELL = "cannot tell from the caption"
#: Choices of a question, without CANNOT_TELL.
MOST_CHOICES = 25
_TRUE, _FALSE = "true", "false"


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one sample."""

    #: The sample's media.
    key: Key
    text: str
    #: Without CANNOT_TELL.
    choices: tuple[str, ...]
    #: The right one of the choices.
    answer: str
    #: Whether it asks about a reference fact.
    is_fact: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what was answered from a caption."""

    question: Question
    #: Probability by choice, CANNOT_TELL among them; empty where there was no caption.
    shares: Mapping[str, float]

    @property
    def choice(self) -> str:
        return max(self.shares, key=self.shares.__getitem__) if self.shares else CANNOT_TELL

    @property
    def is_right(self) -> bool:
        return self.choice == self.question.answer


class Media:
    """Finds the sample that a line of a user's file is about."""

    def __init__(self, keys: Collection[Key], roots: Iterable[str]) -> None:
        self._keys = frozenset(keys)
        self._roots = list(dict.fromkeys(roots))

    def find(self, value: Any, folder: Path) -> Key:
        """Return the sample with these media: below a root of the source, or the file's folder, or absolute.

        Raises ValueError with what is wrong.
        """
        listed = value if isinstance(value, list) else [value]
        paths = [path for path in listed if isinstance(path, str)]
        if not paths or len(paths) < len(listed):
            raise ValueError('"media" is no path or list of paths; write those of one sample')
        roots = (*self._roots, str(folder))
        tried = [tuple(place_of(root, path) for path in paths) for root in roots]
        found = list(dict.fromkeys(key for key in tried if key in self._keys))
        if len(found) > 1:
            raise ValueError(f'"media" {shown(value)} names {len(found)} samples; write the absolute path')
        if not found:
            raise ValueError(
                f'"media" {shown(value)} is no sample of the source; write its path as the source has it'
            )
        return found[0]


def read_questions(path: Path, media: Media) -> list[Question]:
    """Read a question file. Raises UserError with a line for each fault: file, line, what and remedy."""
    return _read(path, media, _question_of)


def read_facts(path: Path, media: Media) -> list[Question]:
    """Read a fact file; each fact becomes a question. Raises UserError as `read_questions`."""
    return _read(path, media, _facts_of)


def _read(path: Path, media: Media, parse: Any) -> list[Question]:
    found: list[Question] = []
    faults: list[str] = []
    for line in read_captions(path):
        try:
            if line.record is None:
                raise ValueError(f"{line.problem}; write one JSON object per line")
            key = media.find(line.record.get("media"), path.parent.absolute())
            found += parse(line.record, key)
        except ValueError as error:
            faults.append(f"{path}:{line.number}: {error}")
    if faults:
        raise UserError("\n".join(faults))
    if not found:
        raise UserError(f"{path}: holds nothing to ask; write one JSON object per line")
    return found


def _question_of(record: JsonObject, key: Key) -> list[Question]:
    choices = _texts(record, "choices")
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise ValueError(f'"choices" are {len(choices)}; write 2 to {MOST_CHOICES}')
    if len(set(choices)) < len(choices) or CANNOT_TELL in choices:
        raise ValueError(f'"choices" hold one twice, or {CANNOT_TELL!r}, which is added by itself; remove it')
    (question,) = _texts(record, "question", is_list=False)
    (answer,) = _texts(record, "answer", is_list=False)
    if answer not in choices:
        raise ValueError(f'"answer" {shown(answer)} is not among the choices; write one of {shown(choices)}')
    return [Question(key, question, tuple(choices), answer)]


def _facts_of(record: JsonObject, key: Key) -> list[Question]:
    facts = dict.fromkeys(_texts(record, "facts"))
    return [fact_question(key, fact) for fact in facts]


def fact_question(key: Key, fact: str) -> Question:
    return Question(key, f"Is this statement true? {fact}", (_TRUE, _FALSE), _TRUE, is_fact=True)


def _texts(record: JsonObject, name: str, *, is_list: bool = True) -> list[str]:
    """Return the texts under a key. Raises ValueError where they are missing, empty or of another type."""
    value = record.get(name)
    expected = "a list of texts" if is_list else "a text"
    if value is None or value in ("", []):
        raise ValueError(f'has no "{name}"; write {expected}')
    texts = value if is_list else [value]
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'"{name}" is {type_name(value)}; write {expected}, none of them empty')
    return texts


def accuracy(answers: Sequence[Answered]) -> Part:
    """Right answers by questions."""
    return sum(each.is_right for each in answers), len(answers)


def coverage(answers: Sequence[Answered]) -> Part:
    """Answers other than CANNOT_TELL, right or wrong, by questions."""
    return _settled(answers), len(answers)


def cannot_tell(answers: Sequence[Answered]) -> Part:
    """Questions that the caption settles neither way."""
    return len(answers) - _settled(answers), len(answers)


def right_of_answered(answers: Sequence[Answered]) -> Part:
    """Right answers by answers other than CANNOT_TELL."""
    return sum(each.is_right for each in answers), _settled(answers)


def _settled(answers: Sequence[Answered]) -> int:
    return sum(each.choice != CANNOT_TELL for each in answers)


def overlap_of(answers: Sequence[Answered]) -> Overlap:
    """Compare a caption with the reference facts: those that it bears out, and those it takes a side on."""
    return Overlap(sum(each.is_right for each in answers), _settled(answers), len(answers))


def precision(answers: Sequence[Answered]) -> Part:
    """Facts that the caption bears out, by those that it bears out or contradicts."""
    found = overlap_of(answers)
    return (found.right, found.said) if found.said else NOTHING


def recall(answers: Sequence[Answered]) -> Part:
    """Facts that the caption bears out, by all facts."""
    found = overlap_of(answers)
    return found.right, found.true
