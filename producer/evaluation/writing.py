"""Have a model write questions about pictures, and drop those that can be answered without a caption."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from threading import Event

from capflow_tasks.domains.workflows import EXAM
from capflow_tasks.records import FinishedSample, JsonObject, Stage
from capflow_tasks.settings import Settings
from producer.evaluation.arms import finished_of
from producer.evaluation.exam import Asked, Exam, ExamResult
from producer.evaluation.questions import CANNOT_TELL, Question
from producer.evaluation.samples import Drawn, Key, write_plan
from producer.run import CaptionRun, Order, name_of_run
from producer.services import database, find_run, reading
from producer.summary import Summary
from producer.writing.whole import write_lines

#: Stands in place of a caption.
NO_CAPTION = "(There is no caption.)"
#: A question is asked without a caption with its choices in so many orders; one right answer drops it.
ORDERS = 2


@dataclass(frozen=True, slots=True)
class Draft:
    """A question that a model has written."""

    question: Question
    sample: Drawn
    domain: str


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the drafts."""

    kept: Sequence[Draft]
    #: Drafts, and those of them that were answered right without a caption.
    drafts: int
    guessable: int

    def write(self, path: Path) -> None:
        """Write a question file, as `questions.read_questions` reads it."""
        write_lines(path, map(_record, self.kept), keep_empty=True)


def _record(draft: Draft) -> JsonObject:
    question, key = draft.question, draft.sample.key
    media = key[0] if len(key) == 1 else list(key)
    said = {"question": question.text, "choices": list(question.choices), "answer": question.answer}
    return {"media": media, "domain": draft.domain, **said}


class QuestionRun:
    """The writing of questions about samples, in a folder of its own; the same command goes on."""

    def __init__(self, folder: Path, samples: Sequence[Drawn], seed: int, batch_size: int = 8) -> None:
        self._folder = folder
        self._samples = samples
        self._seed = seed
        self._batch_size = batch_size
        self._name = f"eval-{name_of_run(folder)}"

    def draft(self, settings: Settings, stopping: Event) -> Summary:
        """Have the model of the stage perceive write questions about each sample."""
        plan = write_plan(self._samples, self._folder / "samples")
        stages = (Stage.ROUTE, Stage.PERCEIVE)
        order = Order(
            plan,
            self._folder / "drafts",
            f"{self._name}-drafts",
            self._batch_size,
            stages=stages,
            workflow=EXAM,
        )
        return CaptionRun(order, settings).run(stopping)

    def check(self, settings: Settings, stopping: Event) -> tuple[ExamResult, Written]:
        """Have the model of the stage score answer each draft without a caption, and drop what it can."""
        with database(settings) as url, reading(url) as engine:
            run = find_run(engine, f"{self._name}-drafts")
            finished = finished_of(engine, run.id, self._samples)
        drafts = list(self._drafts(finished))
        groups = {
            str(order): [_asked(each, Random(f"{self._seed} {order}")) for each in drafts]
            for order in range(ORDERS)
        }
        exam = Exam(settings, self._folder / "blind", f"{self._name}-blind", self._batch_size)
        result = exam.ask(groups, stopping)
        answers = list(zip(*result.answers.values(), strict=True))
        guessed = [any(each.is_right for each in own) for own in answers]
        is_known = [all(each.shares for each in own) for own in answers]
        kept = [
            draft
            for draft, was_guessed, was_asked in zip(drafts, guessed, is_known, strict=True)
            if was_asked and not was_guessed
        ]
        return result, Written(kept, len(drafts), sum(guessed))

    def _drafts(self, finished: Mapping[Key, FinishedSample]) -> Iterator[Draft]:
        """Yield what was written about each sample, without repeats, its choices in an order by the seed."""
        for sample in self._samples:
            if (own := finished.get(sample.key)) is None or own.failure or own.domain is None:
                continue
            seen: set[str] = set()
            for draft in _listed(own):
                question = _question(
                    sample.key, draft, Random(f"{self._seed} {sample.key} {draft['question']}")
                )
                if question is not None and question.text not in seen:
                    seen.add(question.text)
                    yield Draft(question, sample, own.domain)


def _listed(sample: FinishedSample) -> list[JsonObject]:
    return [each for result in sample.results for each in (result.data or {}).get("questions", [])]


def _question(key: Key, draft: JsonObject, draw: Random) -> Question | None:
    """Return the question; None for one whose answers are empty or alike."""
    right, text = draft["right"].strip(), draft["question"].strip()
    choices = [right, *(wrong.strip() for wrong in draft["wrong"])]
    folded = {choice.casefold() for choice in choices}
    if not text or len(folded) < len(choices) or folded & {"", CANNOT_TELL}:
        return None
    draw.shuffle(choices)
    return Question(key, text, tuple(choices), right)


def _asked(draft: Draft, draw: Random) -> Asked:
    choices = draw.sample(draft.question.choices, len(draft.question.choices))
    question = replace(draft.question, choices=tuple(choices))
    return Asked(question, draft.sample, NO_CAPTION, draft.domain)
