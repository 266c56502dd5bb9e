"""What of a run is to be asked again.

Answers that would be others now, since they were given to other prompts, by another model, or about other
media or another entry; and captions that someone marked bad.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain
from capflow_tasks.domains.verifier import VERIFIER
from capflow_tasks.engine.revision import revision_of
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry, MediaMissing, SampleError
from capflow_tasks.media.paths import resolve_media, stamp_of
from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import Tokens
from capflow_tasks.store.refresh import Answers, AnswerStore, Stamped
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import STAGE_ORDER, ShardRow
from capflow_tasks.store.views import Views
from producer.console import counted
from producer.reading.marks import Mark, Marks, key_of_sample

log = logging.getLogger(__name__)

#: Samples of each shard that tell whether prompts or models have changed; to read all takes minutes.
_NEWEST = 3
#: Files that are looked at at once: a network's answer takes longer than the disk's.
_LOOKS = 32


@dataclass(frozen=True, slots=True)
class Stale:
    """Answers that would be different now."""

    answers: Answers
    #: "prompt", "model", "weights" of the same model, "media", "entry", or "agent" for one that the domain no
    #: longer has.
    changed: str


class Refresh:
    """The stale answers of a run's finished samples."""

    def __init__(self, engine: Engine, run_id: int, catalogue: Catalogue, settings: Settings) -> None:
        self._store = AnswerStore(engine)
        self._views = Views(engine)
        self._run_id = run_id
        #: Samples whose media could not be found when they were looked at; they count as unchanged.
        self.unseen = 0
        self._domains = {domain.name: domain for domain in catalogue.domains}
        self._router = catalogue.router
        self._verifier = catalogue.verifier
        #: By stage; empty where the producer does not know what workers have loaded.
        self._models: Mapping[Stage, str] = {}
        if settings.knows_models:
            self._models = {stage: settings.model_of(settings.queue_of(stage)) for stage in Stage}
        #: By model; for those whose files are on this machine.
        self._revisions: Mapping[str, str | None] = {}
        if settings.engine == "vllm":
            loaded = settings.engine_args.get("revision")
            self._revisions = {model: revision_of(model, loaded) for model in set(self._models.values())}

    def is_needed(self) -> bool:
        """Whether some of the last answers are stale."""
        return any(self._stale(self._store.answers(self._run_id, _NEWEST)))

    def stale(self) -> list[Stale]:
        """Return the answers that are stale by prompt, model or media, once for each reason.

        Reads all results of the run. Media are looked at, not opened.
        """
        found = list(self._stale(self._store.answers(self._run_id)))
        return found + self.about("media", self._changed_media())

    def about(self, changed: str, samples: Iterable[tuple[int, Sequence[int]]]) -> list[Stale]:
        """Return the answers about these samples, given by shard, as stale by what has `changed`."""
        found: dict[Answers, Answers] = {}
        for shard_id, sample_ids in samples:
            for each in self._store.answers(self._run_id, shard_id=shard_id, sample_ids=sample_ids):
                kind = replace(each, answers=0, tokens=Tokens())
                known = found.get(kind, kind)
                total, tokens = known.answers + each.answers, known.tokens + each.tokens
                found[kind] = replace(kind, answers=total, tokens=tokens)
        return [Stale(each, changed) for each in found.values()]

    def _changed_media(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the samples whose media have another size or time than when they were answered about."""
        self.unseen = 0
        with ThreadPoolExecutor(_LOOKS) as pool:
            for row in self._views.shards(self._run_id):
                changed: list[int] = []
                for page in self._store.stamped(row.id):
                    parts = [page[start::_LOOKS] for start in range(_LOOKS)]
                    for ids, unseen in pool.map(partial(_look, row.shard), parts):
                        changed += ids
                        self.unseen += unseen
                if changed:
                    yield row.id, changed

    def forget(self) -> int:
        """Have stale answers and those that depend on them asked for again; return the samples that wait."""
        changed = [sample_id for _, ids in self._changed_media() for sample_id in ids]
        samples = self._forget_answers()
        return samples + (self._store.forget_samples(changed) if changed else 0)

    def _forget_answers(self) -> int:
        answers = self._store.answers(self._run_id)
        stale = [each.answers for each in self._stale(answers)]
        domains = [self._domains[name] for name in {each.domain for each in stale}]
        readers = {domain.name: readers_in(domain, self._router) for domain in domains}
        first = {
            domain.name: self._first_stage(domain, readers[domain.name], stale, answers) for domain in domains
        }
        return self._store.forget(self._run_id, stale, readers, first)

    def _stale(self, answers: Sequence[Answers]) -> Iterator[Stale]:
        for each in answers:
            if each.domain in self._domains and (changed := self._changed(each)):
                yield Stale(each, changed)

    def _changed(self, answers: Answers) -> str:
        """Return what has changed since the answers were given; nothing if they would be the same."""
        agents = (self._router, *self._domains[answers.domain].agents)
        if answers.agent == VERIFIER:
            return "" if self._verifier and self._verifier.digest == answers.digest else "prompt"
        agent = next((agent for agent in agents if agent.name == answers.agent), None)
        if agent is None:
            return "agent"
        if agent.digest != answers.digest:
            return "prompt"
        if agent.tool:
            return ""
        if self._models.get(answers.stage, answers.model) != answers.model:
            return "model"
        revisions = (answers.revision, self._revisions.get(answers.model))
        return "weights" if None not in revisions and len(set(revisions)) > 1 else ""

    @staticmethod
    def _first_stage(
        domain: Domain,
        readers: Mapping[str, Sequence[str]],
        stale: Sequence[Answers],
        answers: Sequence[Answers],
    ) -> Stage:
        """Return the first stage in which an agent is to be asked again, or for the first time."""
        again = {each.agent for each in stale if each.domain == domain.name}
        again |= {reader for agent in again for reader in readers.get(agent, ())}
        known = {each.agent for each in answers if each.domain == domain.name}
        asked = [agent.stage for agent in domain.agents if agent.name in again or agent.name not in known]
        return min(asked, key=STAGE_ORDER.__getitem__, default=Stage.SCORE)


def _look(shard: PlanShard, samples: Sequence[Stamped]) -> tuple[list[int], int]:
    """Return the samples whose media have changed, and how many have media that cannot be found."""
    changed, unseen = [], 0
    for sample in samples:
        paths = [path for _, path in media_of(sample.entry, shard.modality)]
        # most are as they were, and lie where they seem to
        if stamp_of(f"{shard.root}/{path}" for path in paths) == sample.stamp:
            continue
        try:
            stamp = stamp_of([resolve_media(shard.root, path) for path in paths])
        except SampleError:
            stamp = None
        unseen += stamp is None
        if stamp not in (None, sample.stamp):
            changed.append(sample.sample_id)
    return changed, unseen


def readers_in(domain: Domain, router: Agent) -> dict[str, list[str]]:
    """Return by agent those that read its answer, directly or not; all of them depend on the route."""
    readers: dict[str, list[str]] = {router.name: [*(agent.name for agent in domain.agents), VERIFIER]}
    for agent in reversed(domain.agents):
        direct = [later.name for later in domain.agents if agent.name in later.sees]
        indirect = [name for reader in direct for name in readers.get(reader, ())]
        # A caption and the list of its claims are made together.
        own = [VERIFIER] * (domain.captioner.name in (agent.name, *direct, *indirect))
        readers[agent.name] = list(dict.fromkeys(direct + indirect + own))
    readers[VERIFIER] = [domain.captioner.name, *readers[domain.captioner.name]]
    return readers


def write_marked_again(views: Views, runs: RunStore, run_id: int, marks: Marks) -> None:
    """Have captioned again what someone marked bad, unless it has been captioned again since."""
    bad = marks.marked(Mark.BAD)
    placed = views.samples(views.ids_at(run_id, [each.place for each in bad.values()]))
    ids = [each.id for each in placed if key_of_sample(each.sample) in bad]
    count = runs.write_again(run_id, ids)
    log.info("captioning %s again that someone marked bad", counted(count, "sample"))
    if rest := len(bad) - count:
        log.info(
            "left alone: %s marked bad, not in this run or written again since", counted(rest, "caption")
        )


def still_missing(views: Views, shards: Sequence[ShardRow]) -> list[int]:
    """Return the samples that failed as their media were missing, and are missing still.

    Where a root is away on this machine, its samples are left to the workers.
    """
    found = []
    for row in shards:
        if not Path(row.shard.root or "/").is_dir():
            continue
        for sample_id, sample in views.failed_as(row.id, MediaMissing.kind):
            with suppress(BadEntry):
                media = media_of(sample, row.shard.modality)
                found += [sample_id] if any(_is_missing(row.shard.root, path) for _, path in media) else []
    return found


def _is_missing(root: str, path: str) -> bool:
    try:
        resolve_media(root, path)
    except MediaMissing:
        return True
    except SampleError:
        return False
    return False
