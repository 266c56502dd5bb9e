"""Takes each sample through its stages at its own pace, so that a slow answer holds up its own sample only.

A batch is claimed and written stage by stage. Inside the worker, a sample that has its answers of one stage
is asked for the next stage at once. Those answers wait in memory until the batch is claimed for that stage;
if the worker dies before, they are asked for again.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from threading import Lock, Thread

from capflow_tasks.records import Stage
from capflow_tasks.store.states import Claim, Outcome, PendingSample

#: Asks for one stage of one sample.
Ask = Callable[[Claim, PendingSample], Outcome]
#: Returns whether samples may go on to a stage that is not claimed yet.
MayGoOn = Callable[[], bool]


class SampleChain:
    """One sample in a thread of its own, from the claimed stage through those that may follow it."""

    def __init__(
        self, claim: Claim, sample: PendingSample, stages: Sequence[Stage], ask: Ask, may_go_on: MayGoOn
    ) -> None:
        self._claim = claim
        self._ask = ask
        self._may_go_on = may_go_on
        #: The sample as each stage found it.
        self._asked = {claim.stage: sample}
        self._outcomes: dict[Stage, Future[Outcome]] = {stage: Future() for stage in stages}
        Thread(target=self._run, name=f"sample-{sample.id}", daemon=True).start()

    def outcome(self, stage: Stage) -> Future[Outcome]:
        return self._outcomes[stage]

    def stop(self) -> None:
        """Ask for no further stage."""
        for outcome in self._outcomes.values():
            outcome.cancel()

    def fits(self, stage: Stage, sample: PendingSample) -> bool:
        """Return whether the stage was asked about the sample as the database has it now."""
        if (asked := self._asked.get(stage)) is None:
            return False
        outcome = self._outcomes[stage]
        if outcome.cancelled() or (outcome.done() and outcome.exception()):
            return False
        return (asked.domain, _texts(asked)) == (sample.domain, _texts(sample))

    def _run(self) -> None:
        for stage, outcome in self._outcomes.items():
            if not outcome.set_running_or_notify_cancel():
                return
            claim, sample = replace(self._claim, stage=stage), self._asked[stage]
            try:
                found = self._ask(claim, sample)
            except BaseException as error:
                self.stop()
                outcome.set_exception(error)
                return
            if found.failure or claim.holds(found.route) or not self._may_go_on():
                self.stop()
            self._note(stage, sample, found)
            outcome.set_result(found)

    def _note(self, stage: Stage, sample: PendingSample, found: Outcome) -> None:
        """Note what the sample will be when the outcome is written."""
        domain = found.route.domain if found.route else sample.domain
        results, stamp = (*sample.results, *found.results), sample.media_stamp or found.media_stamp
        after = replace(sample, domain=domain, results=results, media_stamp=stamp)
        later = list(self._outcomes)[list(self._outcomes).index(stage) + 1 :]
        self._asked |= dict.fromkeys(later[:1], after)


def _texts(sample: PendingSample) -> dict[str, str]:
    return {result.agent: result.text for result in sample.results}


class SampleChains:
    """The chains of all open batches: those from their first claim here to their last stage. Thread-safe."""

    def __init__(self, ask: Ask, may_go_on: MayGoOn) -> None:
        self._ask = ask
        self._may_go_on = may_go_on
        self._lock = Lock()
        #: By batch, then by sample; a batch that was just claimed has none yet.
        self._chains: dict[int, dict[int, SampleChain]] = {}

    @property
    def open_batches(self) -> int:
        return len(self._chains)

    @property
    def new_batches(self) -> int:
        """Open batches about which nothing has been asked yet."""
        with self._lock:
            return sum(not chains for chains in self._chains.values())

    def open(self, batch_id: int) -> None:
        """Count the batch among the open ones before its samples are known."""
        with self._lock:
            self._chains.setdefault(batch_id, {})

    def outcomes(
        self, claim: Claim, samples: Sequence[PendingSample], stages: Sequence[Stage]
    ) -> list[Outcome]:
        """Return the outcomes of the claimed stage; the samples go on with `stages`, which it begins.

        Raises what the engine raised, once no sample of the batch waits for this stage.
        """
        with self._lock:
            known = self._chains.get(claim.batch_id, {})
            chains = [self._chain(claim, sample, stages, known.get(sample.id)) for sample in samples]
            self._chains[claim.batch_id] = {
                sample.id: chain for sample, chain in zip(samples, chains, strict=True)
            }
        outcomes = [chain.outcome(claim.stage) for chain in chains]
        wait(outcomes)
        return [outcome.result() for outcome in outcomes]

    def forget(self, batch_id: int) -> None:
        """Close the batch; its samples are asked for no further stage."""
        with self._lock:
            chains = self._chains.pop(batch_id, {})
        for chain in chains.values():
            chain.stop()

    def _chain(
        self, claim: Claim, sample: PendingSample, stages: Sequence[Stage], known: SampleChain | None
    ) -> SampleChain:
        if known is not None:
            if known.fits(claim.stage, sample):
                return known
            known.stop()
        return SampleChain(claim, sample, stages, self._ask, self._may_go_on)
