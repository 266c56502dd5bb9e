"""One sample in one stage: the requests of its agents, and what became of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from capflow_tasks import records
from capflow_tasks.captioning import blame, guard, quotes
from capflow_tasks.captioning.answers import (
    check_storable,
    errors_named,
    expected_grades,
    parse_scores,
    softened,
)
from capflow_tasks.captioning.verification import Question, Verification
from capflow_tasks.domains import prompts
from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain
from capflow_tasks.domains.schemas import texts_in
from capflow_tasks.domains.verifier import VERIFIER
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadAnswer, BadEntry, SampleError, WorkflowError, WorkflowMissing
from capflow_tasks.media import ocr, paths, video
from capflow_tasks.media.addresses import part_of
from capflow_tasks.observe import metrics
from capflow_tasks.store import candidates
from capflow_tasks.store.states import Claim, Outcome, PendingSample, Route

#: What is summed over the calls of a verification.
_COUNTED = ("prompt_tokens", "cached_tokens", "completion_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the engine, and the agent it is made for."""

    #: Named `name@start-end` for one window of a video.
    agent: Agent
    request: records.Request


@dataclass(slots=True)
class Conversation:
    """Asks the agents of one stage about one sample, each as soon as the agents it sees have answered.

    Its methods raise NodeFault where this node, and not the sample, is to blame.
    """

    claim: Claim
    sample: PendingSample
    catalogue: Catalogue
    #: Name of the model that answers, as stored with the results.
    model: str
    #: None when videos are never cut into windows.
    windows: video.Windows | None = None
    rules: guard.Guard = field(default_factory=guard.Guard)
    #: The model's revision and the engine, as stored with the results.
    revision: str | None = None
    engine: str | None = None
    #: The tools that answer here; agents of others are passed over.
    tools: Collection[str] = ()
    #: Of its media, below the root.
    _paths: tuple[str, ...] = ()
    _media: tuple[records.MediaRef, ...] = ()
    _domain: Domain | None = None
    _results: list[records.Result] = field(default_factory=list)
    _route: Route | None = None
    _failure: records.Failure | None = None
    _media_stamp: str | None = None
    #: By agent: its answers that the guard refused, and the sampling to ask again with.
    _refused: dict[str, list[records.RefusedAnswer]] = field(default_factory=dict)
    _sampling: dict[str, records.Sampling] = field(default_factory=dict)
    #: The windows by agent, so that the file is measured once.
    _spans_by_agent: dict[str, tuple[records.Span, ...]] = field(default_factory=dict)
    #: Of the caption, from its draft until it is verified, with the draft's answer and the open questions.
    _verification: Verification | None = None
    _draft: records.Completion | None = None
    _questions: dict[str, Question] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            if not isinstance(self.sample.entry, dict):
                raise BadEntry("the entry is not a JSON object")
            media = list(media_of(self.sample.entry, self.claim.modality))
            self._paths = tuple(path for _, path in media)
            self._media = tuple(
                records.MediaRef(kind, paths.resolve_media(self.claim.root, path), part_of(path).span)
                for kind, path in media
            )
            self._media_stamp = self.sample.media_stamp or paths.stamp_of(ref.path for ref in self._media)
            if self.sample.domain is not None:
                self._domain = self.catalogue.resolve(self.sample.domain)
        except SampleError as error:
            self.fail(error)
        except WorkflowError as error:
            # The producer's catalogue has it.
            raise WorkflowMissing(
                f"no domain file here has {self.sample.domain!r}, which run {self.claim.run} needs; "
                "start this worker with the CAPFLOW_DOMAINS of `capflow caption`"
            ) from error

    def calls(self) -> list[Call]:
        """Return the requests that can be made now: of agents that have all the answers they see."""
        if self._failure:
            return []
        try:
            answers = self._answers()
            turns = [turn for agent in self._agents() for turn in self._turns(agent, answers)]
            waiting = {_role(agent) for agent, _ in turns}
            due = [(agent, span) for agent, span in turns if waiting.isdisjoint(agent.sees)]
            calls = [Call(agent, self._request(agent, span)) for agent, span in due]
            return calls or self._verification_calls()
        except SampleError as error:
            self.fail(error)
            return []

    def _turns(self, agent: Agent, answers: Mapping[str, str]) -> list[tuple[Agent, records.Span | None]]:
        """Return what the agent has not answered yet: all media at once, or each window."""
        if agent.name in answers:
            return []
        spans = self._spans(agent)
        if not spans:
            return [(agent, None)]
        named = [(replace(agent, name=f"{agent.name}{prompts.WINDOW_MARK}{span}"), span) for span in spans]
        return [(each, span) for each, span in named if each.name not in answers]

    def _spans(self, agent: Agent) -> tuple[records.Span, ...]:
        """Return the windows of the sample's video; none for an agent that sees all of it at once."""
        videos = [ref.path for ref in self._media if ref.kind is records.Modality.VIDEO]
        if self.windows is None or not agent.windows or len(videos) != 1:
            return ()
        if agent.name not in self._spans_by_agent:
            self._spans_by_agent[agent.name] = self.windows.of(videos[0], agent.budget)
        return self._spans_by_agent[agent.name]

    def _request(self, agent: Agent, span: records.Span | None) -> records.Request:
        window = prompts.WHOLE_VIDEO
        if span is not None:
            spans = self._spans_by_agent[_role(agent)]
            window = prompts.window_text(spans.index(span), spans)
        if self._domain is None:
            instruction = prompts.router_instruction(self._offered)
        else:
            # An optional agent whose answer the guard refused has said nothing.
            said = {name: text for name, text in self._answers().items() if text}
            seen = self._media if agent.media else ()
            pictures = sum(ref.kind is records.Modality.IMAGE for ref in seen)
            asked = prompts.question_of(self.sample.entry) if agent.answer == "choice" else None
            instruction = prompts.instruction_for(agent, self._domain, said, window, pictures, asked)
            if self._writes_again(agent):
                instruction += prompts.writing_again(self.catalogue.again, *self._best_earlier())
        media = [
            replace(ref, span=span or ref.span) if ref.kind is records.Modality.VIDEO else ref
            for ref in (self._media if agent.media else ())
        ]
        return records.Request(
            self.catalogue.system,
            tuple(media),
            instruction,
            self._sampling_of(agent),
            choices=self._choices_of(agent),
            schema=prompts.schema_of(agent),
            wants_tokens=agent.answer == "scores",
            budget=agent.budget,
        )

    def _choices_of(self, agent: Agent) -> tuple[str, ...]:
        if agent.answer == "choice":
            return prompts.letters_of(self.sample.entry)
        return () if self._domain else tuple(self._offered.letters)

    def _writes_again(self, agent: Agent) -> bool:
        """Whether the agent writes a further caption of the sample."""
        return bool(self.sample.earlier) and self._domain is not None and agent == self._domain.captioner

    def _sampling_of(self, agent: Agent) -> records.Sampling:
        own = guard.another_draw(agent.sampling) if self._writes_again(agent) else agent.sampling
        return self._sampling.get(agent.name, own)

    def _best_earlier(self) -> tuple[str, list[str]]:
        """Return the best caption so far, and the errors that judges found in it."""
        written = candidates.by_candidate(self.sample.earlier)
        results = written[candidates.best_of(written)]
        captions = [each.text for each in results if each.stage is records.Stage.SUMMARIZE]
        judged = [each.text for each in results if each.stage is records.Stage.SCORE]
        return captions[-1], list(dict.fromkeys(error for text in judged for error in errors_named(text)))

    def take_found(self, agent: Agent, found: records.ToolAnswer) -> None:
        """Keep what a tool found."""
        self._results.append(
            records.Result(
                stage=agent.stage,
                agent=agent.name,
                text=found.text,
                data=found.data,
                model=found.model,
                workflow=agent.digest,
                prompt_tokens=0,
                cached_tokens=0,
                completion_tokens=0,
                finish_reason="stop",
                seconds=found.seconds,
                worker=self.claim.owner,
                position=self._position(agent),
                engine=found.engine,
            )
        )

    def take(self, agent: Agent, answer: records.Completion | SampleError) -> None:
        """Keep the agent's answer, or its error as the sample's failure; ask again what the guard refuses."""
        try:
            if question := self._questions.pop(agent.name, None):
                self._take_verified(question, answer)
                return
            if isinstance(answer, SampleError):
                raise answer
            answer = self.rules.with_broken_signs(answer)
            check_storable(answer)
            checked = self.rules.check(agent, answer)
            if checked.faults:
                self._refuse(agent, answer, checked.faults)
            else:
                self._keep(agent, answer, checked, checked.data or self._read(agent, answer))
                for repair in checked.repairs:
                    metrics.GUARD.labels(repair.rule, records.GuardOutcome.REPAIRED).inc()
        except SampleError as error:
            self.fail(error)

    def _verification_calls(self) -> list[Call]:
        """Return what is to be asked about the caption; note what was found when nothing is left to ask."""
        if self._verification is None or self._domain is None:
            return []
        captioner = self._domain.captioner
        found = self._verification.questions()
        if not found:
            self._end_verification(self._verification, captioner)
        self._questions = {f"{VERIFIER} {number}": question for number, question in enumerate(found)}
        return [
            Call(
                replace(captioner, name=name),
                records.Request(
                    self.catalogue.system,
                    self._media if question.has_media else (),
                    question.instruction,
                    question.sampling or self._sampling_of(captioner),
                    choices=question.choices,
                    schema=question.schema,
                    budget=captioner.budget,
                ),
            )
            for name, question in self._questions.items()
        ]

    def _take_verified(self, question: Question, answer: records.Completion | SampleError) -> None:
        """Take an answer about the caption; without a usable one, the claim or the caption stays."""
        if self._verification is None or self._domain is None:
            return
        try:
            if isinstance(answer, SampleError):
                raise answer
            check_storable(answer)
        except BadAnswer:
            self._verification.take(question, None)
            return
        data = None
        if question.sampling is None:
            checked = self.rules.check(self._domain.captioner, answer)
            answer, data = replace(answer, text="" if checked.faults else checked.text), checked.data
        self._verification.take(question, answer, data)

    def _end_verification(self, verification: Verification, captioner: Agent) -> None:
        """Put the verified caption in place of its draft, behind the list of its claims."""
        (draft,) = (each for each in self._results if each.agent == captioner.name)
        caption = draft
        if verification.rewritten:
            caption = replace(draft, text=verification.rewritten, data=verification.data)
        checks = (self._text_checks(caption.text, caption.data) or {}) | verification.counts
        listed = replace(
            draft,
            agent=VERIFIER,
            text=verification.text,
            data=verification.found,
            workflow=verification.verifier.digest,
            # Readers take the last answer of the stage for the caption.
            position=-1,
            guard=None,
            checks=None,
            **{name: getattr(verification, name) for name in _COUNTED},
        )
        others = [each for each in self._results if each is not draft]
        self._results = [*others, listed, replace(caption, checks=checks)]
        self._verification = None

    def _refuse(self, agent: Agent, answer: records.Completion, faults: tuple[guard.Finding, ...]) -> None:
        """Note a refused answer, to be asked for again; raise an AnswerFault after the last attempt."""
        refused = self._refused.setdefault(agent.name, [])
        outcome = self._outcome_of_refusal(agent, len(refused) + 1)
        refused.append(self._refused_answer(agent, answer, faults, outcome))
        metrics.GUARD.labels(faults[0].rule, outcome).inc()
        tokens = answer.prompt_tokens + answer.completion_tokens
        metrics.REFUSED_TOKENS.labels(faults[0].rule).inc(tokens)
        if outcome is records.GuardOutcome.ASKED_AGAIN:
            self._sampling[agent.name] = guard.changed_sampling(self._sampling_of(agent), faults)
        elif outcome is records.GuardOutcome.LEFT_OUT:
            # Its tokens are counted with the refused attempts.
            nothing = replace(answer, prompt_tokens=0, cached_tokens=0, completion_tokens=0)
            self._keep(agent, nothing, guard.Checked(""), None)
        else:
            times = f"{len(refused)} attempts" if len(refused) > 1 else "1 attempt"
            raise guard.ERRORS[faults[0].rule](
                f"{agent.name}: {faults[0].rule} in each of {times}, last: {faults[0].evidence}"
            )

    def _refused_answer(
        self,
        agent: Agent,
        answer: records.Completion,
        faults: tuple[guard.Finding, ...],
        outcome: records.GuardOutcome,
    ) -> records.RefusedAnswer:
        return records.RefusedAnswer(
            stage=agent.stage,
            agent=agent.name,
            faults={fault.rule: fault.evidence for fault in faults},
            outcome=outcome,
            model=self.model,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=answer.completion_tokens,
            finish_reason=answer.finish_reason,
            seconds=answer.seconds,
            worker=self.claim.owner,
            candidate=self._candidate_of(agent),
        )

    def _candidate_of(self, agent: Agent) -> int:
        return self.sample.candidate if agent.stage in candidates.STAGES else 1

    def _outcome_of_refusal(self, agent: Agent, attempts: int) -> records.GuardOutcome:
        if attempts < self.rules.attempts:
            return records.GuardOutcome.ASKED_AGAIN
        return records.GuardOutcome.LEFT_OUT if agent.optional else records.GuardOutcome.FAILED

    def _keep(
        self,
        agent: Agent,
        answer: records.Completion,
        checked: guard.Checked,
        data: records.JsonObject | None,
    ) -> None:
        """Add the agent's result; its tokens are those of all attempts."""
        refused = self._refused.get(agent.name, [])
        is_caption = self._domain is not None and agent == self._domain.captioner
        checks = self._text_checks(checked.text, data) if is_caption else None
        tokens = {
            name: getattr(answer, name) + sum(getattr(each, name) for each in refused)
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
        }
        self._results.append(
            records.Result(
                stage=agent.stage,
                agent=agent.name,
                text=checked.text,
                data=data,
                model=self.model,
                workflow=agent.digest,
                finish_reason=answer.finish_reason,
                seconds=answer.seconds,
                worker=self.claim.owner,
                position=self._position(agent),
                guard=guard.record(checked, refused),
                expected=dict(answer.probabilities)
                if agent.answer == "choice"
                else expected_grades(answer.tokens, agent.dimensions),
                candidate=self._candidate_of(agent),
                revision=self.revision,
                engine=self.engine,
                sampling=dict(answer.sampling or self._sampling_of(agent).given),
                checks=checks,
                **tokens,
            )
        )
        if is_caption and self.catalogue.verifier and agent.media and self._media:
            unread = (checks or {}).get("unsupported_quotes", ())
            schema = prompts.schema_of(agent)
            self._verification = Verification(self.catalogue.verifier, checked.text, unread, schema)
            self._draft = answer

    def _text_checks(self, text: str, data: records.JsonObject | None) -> records.JsonObject | None:
        """Compare a caption, or the texts of one of JSON, with what was read; None where nothing was."""
        prose = text if data is None else "\n".join(texts_in(data))
        answers = {result.agent: result for result in (*self.sample.results, *self._results)}
        agents = self._domain.agents if self._domain else ()
        known = [(each, answers[each.name]) for each in agents if each.name in answers]
        found = [result.data for each, result in known if each.tool and result.data]
        pictures = [picture for data in found for picture in data.get("pictures", ())]
        verbatim = [result.text for each, result in known if each.verbatim]
        return quotes.text_checks(prose, verbatim, pictures, ocr.SURE) if pictures else None

    def _position(self, agent: Agent) -> int:
        """Return the agent's place in its workflow, from 0."""
        order = [each.name for each in self._domain.agents] if self._domain else []
        return order.index(role) if (role := _role(agent)) in order else 0

    def fail(self, error: SampleError) -> None:
        """Note the error as the sample's failure. Raises NodeFault when it is this node's."""
        if fault := blame.node_fault(error, self.claim.root, self._paths):
            raise fault from error
        self._failure = records.Failure(self.claim.stage, error.kind, str(error), error.is_retryable)

    def outcome(self) -> Outcome:
        """Return what the stage writes: the answers, and the failure if an agent has none."""
        self._throw_draft_away()
        answered = {result.agent for result in self._results}
        refused = [each for name, own in self._refused.items() if name not in answered for each in own]
        is_new = self._results and self.sample.media_stamp is None
        return Outcome(
            self.sample.id,
            tuple(self._results),
            self._route,
            self._failure,
            tuple(refused),
            self._media_stamp if is_new else None,
        )

    def _throw_draft_away(self) -> None:
        """Do without a caption whose verification failed: it is written again at the next try."""
        if self._verification is None or self._draft is None or self._domain is None:
            return
        captioner = self._domain.captioner
        spent = {name: getattr(self._verification, name) + getattr(self._draft, name) for name in _COUNTED}
        failed = records.GuardOutcome.FAILED
        thrown = self._refused_answer(captioner, replace(self._draft, **spent), (), failed)
        self._refused.setdefault(captioner.name, []).append(thrown)
        self._results = [each for each in self._results if each.agent != captioner.name]
        self._verification = None

    @property
    def _offered(self) -> Catalogue:
        """The domains as the router is offered them."""
        return self.catalogue.in_order_for(f"{self.claim.dataset} {self.sample.idx}")

    def _agents(self) -> tuple[Agent, ...]:
        if self._domain is not None:
            agents = self._domain.agents_of(self.claim.stage)
            return tuple(agent for agent in agents if not agent.tool or self._can_ask(agent.tool))
        return (self.catalogue.router,) if self.claim.stage is records.Stage.ROUTE else ()

    def _can_ask(self, tool: str) -> bool:
        return tool in self.tools and any(ref.kind is records.Modality.IMAGE for ref in self._media)

    def _answers(self) -> dict[str, str]:
        """Return the answers so far by agent, of earlier stages too."""
        return {result.agent: result.text for result in (*self.sample.results, *self._results)}

    def _read(self, agent: Agent, answer: records.Completion) -> records.JsonObject | None:
        """Return the parsed answer; the likeliest letter also becomes the sample's route.

        Raises BadAnswer for one that cannot be parsed, and notes it with its tokens.
        """
        try:
            return self._parsed(agent, answer)
        except BadAnswer:
            failed = self._refused_answer(agent, answer, (), records.GuardOutcome.FAILED)
            self._refused.setdefault(agent.name, []).append(failed)
            raise

    def _parsed(self, agent: Agent, answer: records.Completion) -> records.JsonObject | None:
        if agent.answer == "letter":
            letters = self._offered.letters
            shares = {
                letters[letter].name: share
                for letter, share in answer.probabilities.items()
                if letter in letters
            }
            if not shares:
                raise BadAnswer(f"the router's answer {answer.text[:80]!r} is none of {', '.join(letters)}")
            domain = max(shares, key=shares.__getitem__)
            self._route = Route(domain, softened(shares, agent.confidence_temperature)[domain])
            return dict(shares)
        if agent.answer == "scores":
            return dict(parse_scores(answer.text, agent))
        return None


def _role(agent: Agent) -> str:
    """Return the agent's name in the domain file, without a window."""
    return agent.name.partition(prompts.WINDOW_MARK)[0]
