"""`capflow domains`: list, show and check domains."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capflow_tasks.errors import EXIT_USAGE, WorkflowError
from capflow_tasks.records import JsonObject
from producer.cli import options as cli

if TYPE_CHECKING:
    from capflow_tasks.domains.catalogue import Agent, Domain
    from producer.calibration import Calibration


_folder_option = cli.option(
    "--domains folder",
    "Folder of domain files that override or add to the nine.",
    kind=cli.ANY_PATH,
    variable="DOMAINS",
)


@click.group(cls=cli.Group)
def domains() -> None:
    """List domains, show their agents and prompts, and check your own domain files."""


@domains.command(name="list", cls=cli.Command, exit_codes=(0, 2))
@_folder_option
@cli.workflow_option
@cli.json_option("a JSON list with an object per domain")
def list_domains(folder: Path | None, workflow: str, as_json: bool) -> None:
    """List every domain with its agents by stage: "perceive > reason > summarize > score".

    Examples:
      capflow domains list
      capflow domains list --domains my-domains --json | jq '.[].name'
    """
    from capflow_tasks.domains.catalogue import load_workflow
    from capflow_tasks.settings import read_settings

    catalogue = load_workflow(workflow, folder, read_settings().language)
    if as_json:
        shown = ("name", "aliases", "modality", "version", "digest")
        listed = [{name: getattr(domain, name) for name in shown} for domain in catalogue.domains]
        for entry, domain in zip(listed, catalogue.domains, strict=True):
            entry["agents"] = [{"name": agent.name, "stage": agent.stage} for agent in domain.agents]
        cli.print_json(listed)
        return
    width = max(len(domain.name) for domain in catalogue.domains)
    for domain in catalogue.domains:
        also = f"  (also {', '.join(domain.aliases)})" if domain.aliases else ""
        by_stage = groupby(domain.agents, key=lambda agent: agent.stage)
        agents = " > ".join(", ".join(agent.name for agent in group) for _, group in by_stage)
        click.echo(f"{domain.name:<{width}}  {domain.modality}  {agents}{also}")


@domains.command(cls=cli.Command, exit_codes=(0, 2))
@click.argument("name")
@click.option(
    "--render",
    "sample",
    type=cli.ANY_PATH,
    metavar="FILE",
    help="Show the prompts as the model would get them for this picture or video, instead of the templates.",
)
@_folder_option
@cli.workflow_option
@cli.json_option("the domain as one JSON object, with its prompts if --render is given")
def show(name: str, sample: Path | None, folder: Path | None, workflow: str, as_json: bool) -> None:
    """Show the domain NAME (or an alias of it): its agents, what each sees, and its prompts.

    With --render each call is shown as the model reads it: the system line, a line in place of the picture or
    video with its cost in tokens, and the instruction. The separators of the model's chat template are left
    out, and a placeholder stands for what an earlier agent would have answered.

    Examples:
      capflow domains show Natural
      capflow domains show Natural --workflow fast
      capflow domains show "Chart & Math" --render chart.png
      capflow domains show Video --render clip.mp4 --json | jq -r '.prompts[].instruction'
    """
    from capflow_tasks.domains.catalogue import load_workflow
    from capflow_tasks.settings import read_settings
    from producer.domains import describe_media, render

    settings = read_settings()
    catalogue = load_workflow(workflow, folder, settings.language)
    domain = catalogue.resolve(name)
    calls: list[tuple[Agent, JsonObject | None]] = [(agent, None) for agent in domain.agents]
    if sample:
        calls = list(render(catalogue, domain, describe_media(sample, domain.modality, settings)))
    if as_json:
        cli.print_json(asdict(domain) | ({"prompts": [call for _, call in calls]} if sample else {}))
        return
    _show_domain(domain)
    for agent, call in calls:
        _show_prompt(agent, call)


@domains.command(cls=cli.Command, exit_codes=(0, 2))
@click.argument("folder", type=cli.ANY_PATH)
@cli.json_option("the problems as one JSON object")
def check(folder: Path, as_json: bool) -> None:
    """Report every problem of the domain files in FOLDER; exit with code 2 if there is any.

    Examples:
      capflow domains check my-domains
      capflow domains check my-domains --json | jq -r '.problems[]'
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from producer.domains import folder_faults

    faults = folder_faults(folder)
    if as_json:
        cli.print_json({"folder": str(folder), "problems": faults})
        click.get_current_context().exit(EXIT_USAGE if faults else 0)
    if faults:
        raise WorkflowError("\n".join(faults))
    click.echo(f"{folder}: nothing to fix; {len(load_catalogue(folder).domains)} domains with it")


@domains.command(cls=cli.Command, exit_codes=(2,), exit_meanings={0: "measured"})
@click.argument("run_or_plan", metavar="RUN")
@cli.option("--label KEY", "Key of the entries that names the true domain.", "label")
@_folder_option
@cli.json_option("the figures as one JSON object")
def calibrate(run_or_plan: str, label: str, folder: Path | None, as_json: bool) -> None:
    """Measure the router's confidence on samples whose domain is known, and find what puts it right.

    RUN has routed entries that name their domain under KEY and have no `task`. The tables show by confidence
    how many choices were right. The temperature goes into `_defaults.yaml`, for the model that routed:
    choices stay as they are, while confidences change, and so does what --min-confidence holds back.

    Examples:
      capflow caption labelled.jsonl --stages route && capflow domains calibrate labelled.jsonl
      capflow domains calibrate labelled.jsonl --label category --json | jq .temperature
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.store.states import SampleState
    from capflow_tasks.store.views import Views
    from producer.calibration import calibrate, labelled

    catalogue = load_catalogue(folder)
    with cli.open_run(run_or_plan) as (run, engine):
        views = Views(engine)
        shards = views.shards(run.id)
        samples = (each for row in shards for each in views.finished_samples(row.id, SampleState.DONE))
        found = calibrate(labelled(samples, label, lambda name: catalogue.resolve(name).name))
    if as_json:
        cli.print_json(asdict(found))
    else:
        _show_calibration(found)


def _show_calibration(found: Calibration) -> None:
    from rich.console import Console

    from producer.console import count, percent, table

    console = Console(highlight=False)
    shown = (
        ("as the model gives it", found.before),
        (f"with temperature {found.temperature:g}", found.after),
    )
    for title, bins in shown:
        reliability = table(f"Confidence {title}", [], ["confidence", "samples", "right"])
        for each in bins:
            reliability.add_row(percent(each.confidence), count(each.samples), percent(each.right))
        console.print(reliability)
    click.echo(
        f"Confidence and share of right choices are {found.error_before:.3f} apart on the mean, "
        f"{found.error_after:.3f} with the temperature (each half with that of the other half).\n"
        "Put this into _defaults.yaml of your domain files, the folder that CAPFLOW_DOMAINS names:\n\n"
        f"router:\n  confidence_temperature: {found.temperature:g}"
    )


def _show_domain(domain: Domain) -> None:
    also = f" (also {', '.join(domain.aliases)})" if domain.aliases else ""
    click.echo(f"{domain.name}{also}: {domain.description}")
    click.echo(f"{domain.modality}s of {', '.join(domain.subdomains) or 'any kind'}")
    click.echo(f"version {domain.version}, workflow {domain.digest}\n")
    for agent in domain.agents:
        if agent.tool:
            click.echo(f"{agent.stage:<10} {agent.name:<20} is the tool {agent.tool}")
            continue
        sees = [*(["the media"] if agent.media else []), *agent.sees]
        click.echo(f"{agent.stage:<10} {agent.name:<20} sees {', '.join(sees) or 'nothing'}")


def _show_prompt(agent: Agent, call: JsonObject | None) -> None:
    """Print the call that an agent makes; without one, the template of its prompt."""
    if agent.tool:
        return
    sampling = [f"{name} {value:g}" for name, value in agent.sampling.named.items()]
    thinking = f"at most {agent.sampling.thinking_tokens} tokens of thinking, " if agent.thinking else ""
    click.echo(
        f"\n=== {agent.stage}: {agent.name}, workflow {agent.digest}, {thinking}at most "
        f"{agent.sampling.max_tokens} tokens, {', '.join(sampling) or 'sampling as the model recommends'}"
    )
    if call is None:
        click.echo(agent.prompt)
        return
    media = f"{call['media']}\n" if call["media"] else ""
    click.echo(f"--- system\n{call['system']}\n--- user\n{media}{call['instruction']}")
