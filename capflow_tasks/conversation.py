"""One sample inside one stage: which agents are to speak, what each is asked, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from capflow_tasks.answers import check_text, parse_scores
from capflow_tasks.domains import Agent, Catalogue, Domain
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry, SampleError
from capflow_tasks.media_paths import resolve_media
from capflow_tasks.prompts import instruction_for, router_instruction, scores_schema
from capflow_tasks.records import Completion, Failure, JsonObject, MediaRef, Request, Result, Stage
from capflow_tasks.store.rows import Claim, Outcome, PendingSample, Route


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the engine, and whose answer it will be."""

    conversation: Conversation
    agent: Agent
    request: Request


@dataclass(slots=True)
class Conversation:
    """Asks the agents of one stage about one sample, each as soon as those it sees have answered."""

    claim: Claim
    sample: PendingSample
    catalogue: Catalogue
    #: Name of the model that answers, as stored with the results.
    model: str
    _media: tuple[MediaRef, ...] = ()
    _domain: Domain | None = None
    _results: list[Result] = field(default_factory=list)
    _route: Route | None = None
    _failure: Failure | None = None

    def __post_init__(self) -> None:
        try:
            self._media = _media_refs(self.sample.entry, self.claim)
            if self.sample.domain is not None:
                self._domain = self.catalogue.resolve(self.sample.domain)
        except SampleError as error:
            self.fail(error)

    def calls(self) -> list[Call]:
        """What to ask now: agents who have not spoken yet and have heard all that they are to hear."""
        if self._failure:
            return []
        waiting = [agent for agent in self._agents() if agent.name not in self._heard()]
        names = {agent.name for agent in waiting}
        due = [agent for agent in waiting if names.isdisjoint(agent.sees)]
        try:
            return [Call(self, agent, self._request(agent)) for agent in due]
        except SampleError as error:
            self.fail(error)
            return []

    def _request(self, agent: Agent) -> Request:
        choices: tuple[str, ...] = ()
        schema: JsonObject | None = None
        if self._domain is None:
            instruction, choices = router_instruction(self.catalogue), tuple(self.catalogue.letters)
        else:
            instruction = instruction_for(agent, self._domain, self._heard())
            schema = scores_schema(agent) if agent.answer == "scores" else None
        media = self._media if agent.media else ()
        return Request(self.catalogue.system, media, instruction, agent.sampling, choices, schema)

    def take(self, agent: Agent, answer: Completion | SampleError) -> None:
        """Keep the agent's answer, or the reason why there is none."""
        try:
            if isinstance(answer, SampleError):
                raise answer
            data = self._read(agent, answer)
        except SampleError as error:
            self.fail(error)
            return
        self._results.append(
            Result(
                stage=agent.stage,
                agent=agent.name,
                # PostgreSQL's text cannot hold NUL, and a byte-level model may say it.
                text=answer.text.replace("\0", "\N{REPLACEMENT CHARACTER}").strip(),
                data=data,
                model=self.model,
                workflow=agent.digest,
                prompt_tokens=answer.prompt_tokens,
                cached_tokens=answer.cached_tokens,
                completion_tokens=answer.completion_tokens,
                finish_reason=answer.finish_reason,
                seconds=answer.seconds,
                worker=self.claim.owner,
            )
        )

    def fail(self, error: SampleError) -> None:
        self._failure = Failure(
            self.claim.stage, error.kind, str(error).replace("\0", "\\0"), error.is_retryable
        )

    def outcome(self) -> Outcome:
        """What is to be written: the answers there are, and the failure if one agent has none."""
        return Outcome(self.sample.id, tuple(self._results), self._route, self._failure)

    def _agents(self) -> tuple[Agent, ...]:
        if self._domain is not None:
            return self._domain.agents_of(self.claim.stage)
        return (self.catalogue.router,) if self.claim.stage is Stage.ROUTE else ()

    def _heard(self) -> dict[str, str]:
        return {result.agent: result.text for result in (*self.sample.results, *self._results)}

    def _read(self, agent: Agent, answer: Completion) -> JsonObject | None:
        if agent.answer == "letter":
            return self._read_route(answer.probabilities)
        if agent.answer == "scores":
            return dict(parse_scores(answer.text, agent))
        check_text(answer.text)
        return None

    def _read_route(self, probabilities: Mapping[str, float]) -> JsonObject:
        """The likeliest letter is the domain; all probabilities are kept beside it."""
        letters = self.catalogue.letters
        best = max(probabilities, key=probabilities.__getitem__)
        self._route = Route(letters[best].name, probabilities[best])
        return {letters[letter].name: value for letter, value in probabilities.items()}


def _media_refs(entry: JsonObject, claim: Claim) -> tuple[MediaRef, ...]:
    if not isinstance(entry, dict):
        raise BadEntry("the entry is no JSON object")
    named = media_of(entry, claim.modality)
    return tuple(MediaRef(kind, resolve_media(claim.root, path)) for kind, path in named)
