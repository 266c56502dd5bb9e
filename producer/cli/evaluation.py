"""`capflow eval`: compare arms on the user's own samples, and have questions written about them."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.errors import EXIT_OK, EXIT_SAMPLES_FAILED
from producer.cli import options as cli
from producer.cli.caption import batch_size_option, finish, stop_on_signals
from producer.cli.sources import planned, source_options, sources_argument

if TYPE_CHECKING:
    from threading import Event

    from capflow_tasks.settings import Settings
    from producer.evaluation.arms import Arm, ArmSamples
    from producer.evaluation.comparison import Comparison
    from producer.evaluation.exam import ExamResult
    from producer.evaluation.questions import Answered, Question
    from producer.evaluation.samples import Drawn, Key
    from producer.reading.plan import Plan

samples_option = cli.option(
    "--samples", "Samples to draw from the sources.", 200, click.IntRange(1, 100_000), "EVAL_SAMPLES"
)
seed_option = cli.option("--seed", "Chooses the samples that are drawn.", 0, click.INT, "EVAL_SEED")
reader_option = cli.option(
    "--reader MODEL",
    "Model that answers questions from captions; it sees no media.",
    show_default="that of the stage score",
    variable="EVAL_READER",
)
_READER_REMEDY = "leave --reader out: the model of the stage score reads"


@click.group("eval", cls=cli.Group)
def evaluate() -> None:
    """Say what workflows, models and prompts are worth on your own samples."""


@evaluate.command(cls=cli.Command, exit_codes=(0, 2, 3, 5, 130), shows_settings=True)
@sources_argument
@source_options
@cli.repeatable(
    "--arm arms",
    "What to compare: NAME=WORKFLOW, NAME=WORKFLOW@MODEL, NAME=@MODEL or NAME=run:RUN; the first is what the "
    "others are compared with",
    metavar="ARM",
)
@samples_option
@seed_option
@cli.option("--questions FILE", "Questions (JSONL) to answer from the captions.", kind=cli.EXISTING_FILE)
@cli.option("--facts FILE", "Reference facts (JSONL) to look for in the captions.", kind=cli.EXISTING_FILE)
@reader_option
@cli.output_option("Folder of captions, answers and the page.", "EVAL_OUTPUT", "eval")
@batch_size_option
@cli.minimum_options
@cli.prices_option
@cli.processes_option("Pictures drawn", "EVAL_PROCESSES")
@cli.json_option("the figures as one JSON object")
def compare(
    sources: tuple[str, ...],
    arms: tuple[str, ...],
    samples: int,
    seed: int,
    questions: Path | None,
    facts: Path | None,
    reader: str | None,
    output: Path,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Caption samples of SOURCE by each arm, and show which arm is better and by how much.

    An arm is a workflow (standard, fast, verified, or a folder of domain files), with or without a model of
    its own, or a run that there is already. All arms are measured on the same samples: grades, what the guard
    found, tokens and cost; with --questions, what a model that sees no media can answer from the captions;
    with --facts, which of them the captions bear out. Each value has the interval that it lies in with 95 %
    confidence, and OUTPUT/page compares the captions sample by sample.

    Each arm is a run, and so are the answers: the same command goes on where it was stopped, and does nothing
    twice.

    Examples:
      capflow eval compare photos/ --arm standard --arm fast
      capflow eval compare plan.jsonl --arm now=standard --arm mine=my-domains --samples 500
      capflow eval compare plan.jsonl --arm small=@/models/3B --arm large=@/models/7B --questions exam.jsonl
      capflow eval compare plan.jsonl --arm old=run:plan-2c792dcc --arm fast=fast --json | jq .verdicts
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from producer.cost import read_prices
    from producer.evaluation import arms as arm_module
    from producer.evaluation.comparison import Comparison
    from producer.evaluation.page import write_page
    from producer.evaluation.samples import draw, draw_asked, write_plan
    from producer.reading.caption_files import Criteria, Rubrics
    from producer.services import database, reading

    if not sources or not arms:
        raise click.UsageError("name a SOURCE, and an --arm for each thing to compare")
    settings = read_settings()
    catalogue, prices = load_catalogue(settings.domains), read_prices(options["prices"])
    rubrics = Rubrics(catalogue)
    criteria = Criteria(rubrics, cli.minimums_of(catalogue, rubrics, options))
    parsed = arm_module.parse_arms(arms)
    for arm in parsed:
        arm_module.settings_of(arm, settings)
    reading_settings = arm_module.with_model(settings, reader, "--reader", _READER_REMEDY)
    plan = _plan(sources, options, settings)
    asked = _asked(plan, questions, facts)
    keys, folder = {each.key for each in asked}, output / "samples"
    drawn = draw_asked(plan, samples, seed, keys, folder) if keys else draw(plan, samples, seed)
    own_plan = write_plan(drawn, folder)
    arm_module.check_runs(parsed, settings)
    with stop_on_signals() as stopping:
        for arm in parsed:
            _caption(arm, own_plan, output, settings, stopping, batch_size, as_json)
        with database(settings) as url, reading(url) as engine:
            found = [arm_module.collect(engine, arm, output, settings, drawn, prices) for arm in parsed]
        answers = _answers(reading_settings, output, found, drawn, asked, stopping, batch_size)
    compared = Comparison(found, drawn, answers, criteria, seed)
    page = write_page(compared, output / "page", options["processes"])
    if as_json:
        cli.print_json(compared.as_json() | {"page": str(page)})
    else:
        _show(compared)
        click.echo(page)


def _plan(sources: tuple[str, ...], options: dict[str, Any], settings: Settings) -> Plan:
    from capflow_tasks.domains.catalogue import load_catalogue
    from producer.reading.plan import checked_plan

    catalogue = load_catalogue(settings.domains)
    return checked_plan(planned(sources, options, settings, catalogue.resolve), catalogue.resolve)


def _asked(plan: Plan, questions: Path | None, facts: Path | None) -> list[Question]:
    """Read the questions, those about facts among them. Raises UserError with the faults of both files."""
    from producer.evaluation.questions import Media, read_facts, read_questions
    from producer.evaluation.samples import known_keys

    if not questions and not facts:
        return []
    media = Media(known_keys(plan), (shard.root for shard in plan.shards))
    return [
        each
        for path, read in ((questions, read_questions), (facts, read_facts))
        if path
        for each in read(path, media)
    ]


def _caption(
    arm: Arm, plan: Path, output: Path, settings: Settings, stopping: Event, batch_size: int, as_json: bool
) -> None:
    """Caption by one arm; exit where that was stopped, or could not be done."""
    from producer.evaluation.arms import caption

    summary = caption(arm, plan, output, settings, stopping, batch_size)
    if summary is not None and (not summary.is_complete or summary.problems):
        finish(summary, as_json)


def _answers(
    settings: Settings,
    output: Path,
    arms: list[ArmSamples],
    drawn: list[Drawn],
    questions: list[Question],
    stopping: Event,
    batch_size: int,
) -> dict[str, dict[Key, list[Answered]]]:
    """Have the questions answered from each arm's captions; without a caption nothing can be told."""
    from producer.evaluation.exam import Asked, Exam
    from producer.evaluation.questions import Answered
    from producer.run import name_of_run
    from producer.scoring import caption_of
    from producer.writing.captions import caption_record

    samples = {each.key: each for each in drawn}
    groups: dict[str, list[Asked]] = {}
    answers: dict[str, dict[Key, list[Answered]]] = {}
    for arm in arms:
        asked, own = [], defaultdict(list)
        for question in questions:
            finished = arm.finished.get(question.key)
            if finished and finished.domain and "caption" in (record := caption_record(finished)):
                asked.append(Asked(question, samples[question.key], caption_of(record), finished.domain))
            elif question.key in samples:
                own[question.key].append(Answered(question, {}))
        groups[arm.arm.name], answers[arm.arm.name] = asked, own
    exam = Exam(settings, output / "exam", f"eval-{name_of_run(output)}-exam", batch_size)
    result = exam.ask(groups, stopping)
    _check_complete(result)
    for name, given in result.answers.items():
        for each in given:
            answers[name][each.question.key].append(each)
    return answers


def _check_complete(result: ExamResult) -> None:
    from capflow_tasks.errors import EXIT_INTERRUPTED, EXIT_PAUSED

    if result.failed and result.is_complete:
        click.echo(f"warning: {result.failed} questions have no answer, and count as not told", err=True)
    if not result.is_complete:
        why = f"paused: {result.pause}" if result.pause else "stopped"
        click.echo(f"the answering of questions was {why}; the same command goes on from here", err=True)
        sys.exit(EXIT_PAUSED if result.pause else EXIT_INTERRUPTED)


def _show(compared: Comparison) -> None:
    from rich.console import Console

    from producer.console import counted, table, usd

    names = list(compared.judged)
    title = counted(len(compared.samples), "sample")
    if compared.drawn > len(compared.samples):
        title += f", {compared.drawn - len(compared.samples)} left out as not every arm has finished them"
    shown = table(title, ["measure"], names)
    sure = {(each.second, each.measure.name) for each in compared.verdicts if each.difference.excludes_zero}
    for measure in compared.measures:
        cells = []
        for arm in names:
            found = compared.estimates[arm].get(measure.name)
            mark = " *" if (arm, measure.name) in sure else ""
            write = measure.format
            cells.append(
                f"{write(found.value)} ({write(found.low)} to {write(found.high)}){mark}" if found else "-"
            )
        shown.add_row(measure.name, *cells)
    shown.add_row("cost of 1,000", *(usd(arm.usd_per_1000) for arm in compared.arms))
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(shown)
    if sure:
        console.print(f"* differs from {names[0]} by more than chance")
    for text in filter(None, (*map(str, compared.headlines), compared.caution)):
        console.print(text)


@evaluate.command(cls=cli.Command, exit_codes=(0, 1, 2, 3, 5, 130), shows_settings=True)
@sources_argument
@source_options
@samples_option
@seed_option
@cli.option(
    "--writer MODEL",
    "Model that writes the questions, from the media.",
    show_default="that of the stage perceive",
    variable="EVAL_WRITER",
)
@reader_option
@cli.option("-o --output FILE", "Question file to write.", "questions.jsonl", cli.FILE, "EVAL_QUESTIONS")
@batch_size_option
@cli.json_option()
def questions(
    sources: tuple[str, ...],
    samples: int,
    seed: int,
    writer: str | None,
    reader: str | None,
    output: Path,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Have a model write questions about samples of SOURCE, for `capflow eval compare --questions`.

    A model that sees the media writes up to six questions about each, with one right answer and three wrong
    ones. Then the reader answers them without media or caption: a question that it answers right, with its
    choices in either of two orders, tells nothing about captions and is dropped. Let another model write than
    those that you compare. The same command goes on where it was stopped.

    Examples:
      capflow eval questions photos/ -o exam.jsonl
      capflow eval questions plan.jsonl --samples 500 --writer /models/Qwen2.5-VL-72B-Instruct -o exam.jsonl
    """
    from capflow_tasks.settings import read_settings
    from producer.console import counted
    from producer.evaluation.arms import with_model
    from producer.evaluation.samples import draw
    from producer.evaluation.writing import QuestionRun

    if not sources:
        raise click.UsageError("name a SOURCE")
    settings = read_settings()
    remedy = "leave --writer out: the model of the stage perceive writes"
    writing = with_model(settings, writer, "--writer", remedy)
    checking = with_model(settings, reader, "--reader", _READER_REMEDY)
    output = output.absolute()
    drawn = draw(_plan(sources, options, settings), samples, seed)
    run = QuestionRun(output.with_suffix(f"{output.suffix}.work"), drawn, seed, batch_size)
    with stop_on_signals() as stopping:
        summary = run.draft(writing, stopping)
        if not summary.is_complete or summary.problems:
            finish(summary, as_json)
        result, written = run.check(checking, stopping)
        _check_complete(result)
    written.write(output)
    figures = {
        "samples": len(drawn),
        "without_questions": summary.tally.failed,
        "drafts": written.drafts,
        "guessable": written.guessable,
        "questions": len(written.kept),
    }
    if summary.kinds:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.kinds.items())
        click.echo(f"no questions about {counted(summary.tally.failed, 'sample')}: {kinds}", err=True)
    if as_json:
        cli.print_json({"path": str(output), **figures})
    else:
        click.echo(
            f"{output}: {figures['questions']} questions about {figures['samples']} samples; "
            f"of {figures['drafts']} written, {figures['guessable']} can be answered without a caption"
        )
    sys.exit(EXIT_SAMPLES_FAILED if summary.kinds else EXIT_OK)
