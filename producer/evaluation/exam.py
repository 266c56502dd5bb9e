"""A model that sees no media answers questions from captions: a run whose samples are questions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from threading import Event

from capflow_tasks.domains.catalogue import Catalogue, load_workflow
from capflow_tasks.domains.workflows import EXAM
from capflow_tasks.records import FinishedSample, JsonObject, Modality, PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import NewSample, SampleState
from producer.evaluation.questions import CANNOT_TELL, Answered, Question
from producer.evaluation.samples import Drawn
from producer.reading.caption_files import read_captions
from producer.run import OpenRun, Order
from producer.scoring import given_result
from producer.services import reach_fleet
from producer.writing.whole import json_line, write_lines


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the caption that it is to be answered from, and what it is about."""

    question: Question
    sample: Drawn
    caption: str
    domain: str


@dataclass(frozen=True, slots=True)
class ExamResult:
    """The answers by group, in the order of the questions; fewer where the exam was stopped."""

    answers: Mapping[str, Sequence[Answered]]
    is_complete: bool
    #: Why it paused by itself; None when it did not.
    pause: str | None
    #: Questions without an answer, since the model gave none.
    failed: int = 0


class Exam:
    """The questions of one evaluation. What was answered once is not asked again."""

    def __init__(self, settings: Settings, folder: Path, run: str, batch_size: int = 8) -> None:
        """Keep the questions in `folder`, and the answers in the run of this name."""
        self._settings = settings
        self._folder = folder
        self._catalogue = load_workflow(EXAM, settings.domains, settings.language)
        self._order = Order(folder, folder, run, batch_size, stages=(Stage.SCORE,), workflow=EXAM)

    def ask(self, groups: Mapping[str, Sequence[Asked]], stopping: Event) -> ExamResult:
        """Ask all questions of all groups, such as arms. Raises ServiceError where no model is reached."""
        shards: dict[tuple[str, str], PlanShard] = {}
        for number, (group, asked) in enumerate(groups.items()):
            for root in dict.fromkeys(each.sample.shard.root for each in asked):
                own = [each for each in asked if each.sample.shard.root == root]
                shards[group, root] = self._write(f"{number}-{len(shards)}-{group}", root, own)
        if not shards:
            return ExamResult(dict.fromkeys(groups, ()), is_complete=True, pause=None)
        with reach_fleet(self._settings) as fleet:
            run = OpenRun(fleet, self._order, list(shards.values()), forget_other_shards=True)
            run.retry_failed()
            is_complete = run.finish(partial(_read, self._catalogue), stopping)
            rows = dict(zip(shards, run.shards, strict=True))
            found = {
                place: {
                    sample.index: sample for sample in run.views.finished_samples(row.id, SampleState.DONE)
                }
                for place, row in rows.items()
            }
        answers = {group: list(_answers(group, asked, found)) for group, asked in groups.items()}
        missing = sum(not each.shares for group in answers.values() for each in group)
        return ExamResult(answers, is_complete, run.pause, missing)

    def _write(self, name: str, root: str, asked: Sequence[Asked]) -> PlanShard:
        """Write the questions as an annotation file, whose content tells its shard from earlier ones."""
        path, entries = self._folder / f"{name}.jsonl", [_entry(self._catalogue, each) for each in asked]
        write_lines(path, entries)
        digest = blake2b(b"".join(map(json_line, entries)), digest_size=16).hexdigest()
        return PlanShard(name, str(path), root, None, Modality.IMAGE, 0, len(asked), 0, 1, 0, version=digest)


def _entry(catalogue: Catalogue, asked: Asked) -> JsonObject:
    media: JsonObject = {}
    for kind, path in asked.sample.media:
        media.setdefault(f"{kind}s", []).append(path)
    question = asked.question
    choices = [*question.choices, CANNOT_TELL]
    return media | {
        "task": domain_for(catalogue, asked),
        "caption": asked.caption,
        "question": question.text,
        "choices": choices,
    }


def domain_for(catalogue: Catalogue, asked: Asked) -> str:
    """Return the domain whose agents answer: for one that only an arm has, the first of its modality."""
    modalities = {domain.name: domain.modality for domain in catalogue.domains}
    if asked.domain in modalities:
        return asked.domain
    kind, _ = asked.sample.media[0]
    return next(name for name, modality in modalities.items() if modality is kind)


def _read(catalogue: Catalogue, shard: PlanShard, start_idx: int) -> Iterator[NewSample]:
    """Read the questions from an index on, each with its caption as the captioner's answer."""
    lines = enumerate(read_captions(Path(shard.annotation)))
    for index, line in islice(lines, start_idx, shard.end_idx):
        entry = line.record or {}
        captioner = catalogue.resolve(entry["task"]).captioner.name
        caption = given_result(Stage.SUMMARIZE, captioner, entry["caption"])
        yield NewSample(index, entry, entry["task"], results=(caption,))


def _answers(
    group: str, asked: Sequence[Asked], found: Mapping[tuple[str, str], Mapping[int, FinishedSample]]
) -> Iterator[Answered]:
    numbers = dict.fromkeys((each.sample.shard.root for each in asked), 0)
    for each in asked:
        root = each.sample.shard.root
        sample = found[group, root].get(numbers[root])
        numbers[root] += 1
        yield Answered(each.question, _shares(each.question, sample))


def _shares(question: Question, sample: FinishedSample | None) -> dict[str, float]:
    """Return the probability of each choice; nothing where there is no answer."""
    results = sample.results if sample else ()
    chosen = next((each.expected for each in results if each.stage is Stage.SCORE), None) or {}
    by_letter = dict(zip(ascii_uppercase, (*question.choices, CANNOT_TELL), strict=False))
    return {by_letter[letter]: share for letter, share in chosen.items() if letter in by_letter}
