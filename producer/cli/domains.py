"""The command capflow-domains: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.errors import EXIT_USAGE, WorkflowError
from capflow_tasks.settings import read_settings
from producer.cli.options import EXIT_CODES, Command

if TYPE_CHECKING:
    from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain
    from producer.domains import Prompt


LIST_EPILOG = f"""\b
Examples:
  capflow-domains list
  capflow-domains list --domains my-domains --json | jq '.[].name'

{EXIT_CODES}"""

SHOW_EPILOG = f"""\b
Examples:
  capflow-domains show Natural
  capflow-domains show "Chart & Math" --render chart.png
  capflow-domains show Video --render clip.mp4 --json | jq -r '.prompts[].instruction'

{EXIT_CODES}"""

CHECK_EPILOG = f"""\b
Examples:
  capflow-domains check my-domains
  capflow-domains check my-domains --json | jq -r '.problems[]'

{EXIT_CODES}"""

_with_folder = click.option(
    "--domains",
    "folder",
    envvar="CAPFLOW_DOMAINS",
    type=click.Path(path_type=Path),
    help="Folder of domain files that override or add to the nine.  [default: none]",
    show_envvar=True,
)


def _with_json(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what}.")


@click.group()
def domains() -> None:
    """Look at domains: which there are, what their agents are told, whether your own can be used."""


@domains.command(name="list", cls=Command, epilog=LIST_EPILOG)
@_with_folder
@_with_json("a JSON list with an object per domain")
def list_domains(folder: Path | None, as_json: bool) -> None:
    """Name every domain, and its agents by stage: "perceive > reason > summarize > score"."""
    catalogue = _catalogue(folder)
    if as_json:
        click.echo(json.dumps([_summary(domain) for domain in catalogue.domains], ensure_ascii=False))
        return
    width = max(len(domain.name) for domain in catalogue.domains)
    for domain in catalogue.domains:
        also = f"  (also {', '.join(domain.aliases)})" if domain.aliases else ""
        click.echo(f"{domain.name:<{width}}  {domain.modality}  {_agents_by_stage(domain)}{also}")


@domains.command(cls=Command, epilog=SHOW_EPILOG)
@click.argument("name")
@click.option(
    "--render",
    "sample",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show the very prompts that the model would get for this picture or video.  [default: templates]",
)
@_with_folder
@_with_json("the domain as one JSON object, with --render its prompts as well")
def show(name: str, sample: Path | None, folder: Path | None, as_json: bool) -> None:
    """Show the domain NAME (or an alias of it): its agents, what each sees, and its prompts.

    With --render each call is shown as the model reads it: the system line, a line that stands for the
    picture or video with the tokens that it costs, and the instruction; only the marks that the model's chat
    template puts between them are left out. What an earlier agent would have written is a placeholder.
    """
    catalogue = _catalogue(folder)
    domain = catalogue.resolve(name)
    prompts = _prompts(catalogue, domain, sample) if sample else []
    if as_json:
        rendered = {"prompts": [_prompt_object(prompt) for prompt in prompts]} if sample else {}
        click.echo(json.dumps({**asdict(domain), **rendered}, ensure_ascii=False))
        return
    _show_domain(domain)
    texts = map(_prompt_text, prompts) if sample else map(_template_text, domain.agents)
    for text in texts:
        click.echo(f"\n{text}")


@domains.command(cls=Command, epilog=CHECK_EPILOG)
@click.argument("folder", type=click.Path(path_type=Path))
@_with_json("what is wrong as one JSON object")
def check(folder: Path, as_json: bool) -> None:
    """Say everything that is wrong with the domain files in FOLDER; exit code 2 if anything is."""
    # Only now: `--help` need not wait.
    from producer.domains import folder_faults

    faults = folder_faults(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "problems": faults}, ensure_ascii=False))
        click.get_current_context().exit(EXIT_USAGE if faults else 0)
    if faults:
        raise WorkflowError("\n".join(faults))
    click.echo(f"{folder}: nothing to mend; {len(_catalogue(folder).domains)} domains with it")


def _catalogue(folder: Path | None) -> Catalogue:
    from capflow_tasks.domains.catalogue import load_catalogue

    return load_catalogue(folder)


def _prompts(catalogue: Catalogue, domain: Domain, sample: Path) -> list[Prompt]:
    from producer.domains import describe_media, render

    return list(render(catalogue, domain, describe_media(sample, domain.modality, read_settings())))


def _summary(domain: Domain) -> dict[str, Any]:
    return {
        "name": domain.name,
        "aliases": domain.aliases,
        "modality": domain.modality.value,
        "version": domain.version,
        "digest": domain.digest,
        "agents": [{"name": agent.name, "stage": agent.stage.value} for agent in domain.agents],
    }


def _prompt_object(prompt: Prompt) -> dict[str, Any]:
    return {
        "agent": prompt.agent.name,
        "stage": prompt.agent.stage.value,
        "system": prompt.system,
        "media": prompt.media,
        "instruction": prompt.instruction,
    }


def _agents_by_stage(domain: Domain) -> str:
    by_stage = groupby(domain.agents, key=lambda agent: agent.stage)
    return " > ".join(", ".join(agent.name for agent in agents) for _, agents in by_stage)


def _show_domain(domain: Domain) -> None:
    also = f" (also {', '.join(domain.aliases)})" if domain.aliases else ""
    click.echo(f"{domain.name}{also}: {domain.description}")
    click.echo(f"{domain.modality}s of {', '.join(domain.subdomains) or 'any kind'}")
    click.echo(f"version {domain.version}, workflow {domain.digest}\n")
    for agent in domain.agents:
        click.echo(f"{agent.stage:<10} {agent.name:<20} {_what_it_gets(agent)}")


def _what_it_gets(agent: Agent) -> str:
    sees = [*(["the media"] if agent.media else []), *agent.sees]
    return f"sees {', '.join(sees) or 'nothing'}"


def _headline(agent: Agent) -> str:
    sampling = agent.sampling
    return (
        f"=== {agent.stage}: {agent.name}, workflow {agent.digest}, at most {sampling.max_tokens} tokens, "
        f"temperature {sampling.temperature:g}"
    )


def _template_text(agent: Agent) -> str:
    return f"{_headline(agent)}\n{agent.prompt}"


def _prompt_text(prompt: Prompt) -> str:
    return "\n".join(_parts(prompt))


def _parts(prompt: Prompt) -> Iterator[str]:
    yield _headline(prompt.agent)
    yield f"--- system\n{prompt.system}"
    yield "--- user"
    if prompt.media:
        yield prompt.media
    yield prompt.instruction


if __name__ == "__main__":
    domains()
