"""What is compared. An arm captions the samples by a run of its own, or is a run that there is already."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import load_workflow
from capflow_tasks.errors import BadEntry, UserError
from capflow_tasks.records import MOST_CANDIDATES, FinishedSample, Stage, Workflow
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import CandidatePolicy, SampleState
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from producer.cost import Prices, cost_of
from producer.evaluation.samples import Drawn, Key, key_of
from producer.run import CaptionRun, Order
from producer.services import database, find_run, reading
from producer.summary import Summary

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the things that are compared."""

    name: str
    #: Its workflow, a name or a folder of domain files; None for a run that there is already.
    workflow: str | None = None
    #: The model that captions; None for that of the settings.
    model: str | None = None
    #: The run that there is already, or its plan.
    run: str | None = None

    def run_name(self, output: Path, settings: Settings) -> str:
        """Return the run's name: another one for another model, workflow or prompt under the same name."""
        if self.workflow is None:
            return self.run or self.name
        catalogue = load_workflow(self.workflow, settings.domains, settings.language)
        prompts = [catalogue.router.digest, *(domain.digest for domain in catalogue.domains)]
        own = settings_of(self, settings)
        models = [own.model_of(own.queue_of(stage)) for stage in Stage]
        said = f"{output.resolve()}\n{self.workflow}\n{models}\n{prompts}"
        return f"eval-{self.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def parse_arm(text: str) -> Arm:
    """Parse `NAME=WORKFLOW`, `NAME=WORKFLOW@MODEL`, `NAME=@MODEL` or `NAME=run:RUN`. Raises UserError."""
    name, separator, what = text.partition("=")
    if not separator:
        name, what = Path(text.removeprefix("run:")).name, text
    if not _NAME.fullmatch(name) or not what:
        raise UserError(
            f"--arm {text!r}: expected NAME=WORKFLOW, NAME=WORKFLOW@MODEL or NAME=run:RUN, "
            "where NAME begins with a letter or digit"
        )
    if what.startswith("run:"):
        return Arm(name, run=what.removeprefix("run:"))
    workflow, _, model = what.partition("@")
    workflow = workflow or Workflow.STANDARD
    if workflow not in set(Workflow):
        if not Path(workflow).is_dir():
            raise UserError(
                f"--arm {text!r}: {workflow!r} is no folder of domain files; name one, or "
                f"{', '.join(Workflow)}, or run:RUN for a run that there is already"
            )
        workflow = str(Path(workflow).resolve())
    return Arm(name, workflow, model or None)


def parse_arms(texts: Sequence[str]) -> list[Arm]:
    """Parse all arms. Raises UserError when two have one name."""
    arms = [parse_arm(text) for text in texts]
    names = [arm.name for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--arm: {', '.join(repeated)} names two arms; give each a name of its own")
    return arms


def with_model(settings: Settings, model: str | None, what: str, remedy: str) -> Settings:
    """Return the settings with another model. Raises UserError, about `what`, where workers hold others."""
    if model is None or model == settings.model:
        return settings
    if settings.broker_url or settings.stage_queues:
        holder = "CAPFLOW_BROKER_URL: the fleet's" if settings.broker_url else "CAPFLOW_STAGE_QUEUES: the"
        raise UserError(f"{what}: {holder} workers hold other models than {model}; {remedy}")
    return settings.model_copy(update={"model": model})


def settings_of(arm: Arm, settings: Settings) -> Settings:
    """Return the settings with the arm's model. Raises UserError where workers hold models already."""
    remedy = f"caption with workers that hold it, and compare that run: --arm {arm.name}=run:RUN"
    return with_model(settings, arm.model, f"arm {arm.name}", remedy)


def caption(
    arm: Arm, plan: Path, output: Path, settings: Settings, stopping: Event, batch_size: int = 8
) -> Summary | None:
    """Caption what the arm has not captioned yet; None for a run that there is already."""
    if arm.workflow is None:
        return None
    name = arm.run_name(output, settings)
    most = CandidatePolicy(MOST_CANDIDATES.get(arm.workflow, 1))
    order = Order(plan, output / "captions" / name, name, batch_size, workflow=arm.workflow, candidates=most)
    return CaptionRun(order, settings_of(arm, settings)).run(stopping)


def check_runs(arms: Sequence[Arm], settings: Settings) -> None:
    """Raise UserError for an arm whose run is not there, before anything is paid for."""
    if names := [arm.run for arm in arms if arm.run]:
        with database(settings) as url, reading(url) as engine:
            for name in names:
                find_run(engine, name)


@dataclass(frozen=True, slots=True)
class ArmSamples:
    """What an arm made of the samples."""

    arm: Arm
    run: str
    #: Captioned and failed ones, by their media.
    finished: Mapping[Key, FinishedSample]
    #: USD per 1,000 captions of the whole run; None where no price is known.
    usd_per_1000: float | None


def collect(
    engine: Engine, arm: Arm, output: Path, settings: Settings, samples: Sequence[Drawn], prices: Prices
) -> ArmSamples:
    """Find the samples in the arm's run, which is read until all are found. Raises UserError."""
    run = find_run(engine, arm.run_name(output, settings))
    found = finished_of(engine, run.id, samples)
    usd = cost_of(Statistics(engine).usage(run.id), prices).per(run.tally.done)
    return ArmSamples(arm, run.name, found, None if usd is None else usd * 1000)


def finished_of(engine: Engine, run_id: int, samples: Sequence[Drawn]) -> dict[Key, FinishedSample]:
    """Return those of the samples that the run has finished; reads it until all are found."""
    wanted, found = {sample.key for sample in samples}, dict[Key, FinishedSample]()
    for key, sample in _finished(Views(engine), run_id):
        if key in wanted:
            found.setdefault(key, sample)
        if len(found) == len(wanted):
            break
    return found


def _finished(views: Views, run_id: int) -> Iterator[tuple[Key, FinishedSample]]:
    for row in views.shards(run_id):
        for state in (SampleState.DONE, SampleState.FAILED):
            for sample in views.finished_samples(row.id, state):
                try:
                    yield key_of(row.shard.root, sample.entry, row.shard.modality), sample
                except BadEntry:
                    continue
