"""Which answers of a run were given to other prompts or by another model, and how to ask for them again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from capflow_tasks.captioning.verification import VERIFIER
from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain
from capflow_tasks.engine.revision import revision_of
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.refresh import Answers, AnswerStore
from capflow_tasks.store.states import STAGE_ORDER

#: Samples of each shard that tell whether prompts or models have changed; to read all takes minutes.
_NEWEST = 3
#: The engines whose model is the one that the settings name.
_NAMED_ENGINES = ("vllm", "openai")


@dataclass(frozen=True, slots=True)
class Stale:
    """Answers that would be different now."""

    answers: Answers
    #: "prompt", "model", "weights" of the same model, or "agent" for one that the domain no longer has.
    changed: str


class Refresh:
    """The stale answers of a run's finished samples."""

    def __init__(self, engine: Engine, run_id: int, catalogue: Catalogue, settings: Settings) -> None:
        self._store = AnswerStore(engine)
        self._run_id = run_id
        self._domains = {domain.name: domain for domain in catalogue.domains}
        self._router = catalogue.router
        self._verifier = catalogue.verifier
        #: By stage; empty where the producer does not know what workers have loaded.
        self._models: Mapping[Stage, str] = {}
        if settings.broker_url is None and settings.engine in _NAMED_ENGINES:
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
        """Return the stale answers. Reads all results of the run."""
        return list(self._stale(self._store.answers(self._run_id)))

    def forget(self) -> int:
        """Have stale answers and those that depend on them asked for again; return the samples that wait."""
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
