"""Domains and their agents: what the domain files mean.

Owns the catalogue: the packaged domains with a user's folder laid over them, checked and digested. Knows
nothing of YAML (`files.py`), of how a prompt is filled (`prompts.py`) or of who runs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from capflow_tasks.domains.files import (
    DEFAULTS,
    agent_faults,
    domain_faults,
    folded,
    laid_over,
    merged_defaults,
    read_folder,
    refuse,
)
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, MediaLimits, Modality, Sampling, Stage


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing a judge grades."""

    description: str
    #: What earns a 1 (bad), a 2 (good) and a 3 (excellent).
    grades: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Agent:
    """One prompted role of the model."""

    name: str
    stage: Stage
    #: string.Template text; the placeholders are known to be fillable.
    prompt: str
    #: Earlier agents of the domain whose texts this one gets; for a judge also the one who wrote the caption.
    sees: tuple[str, ...]
    #: Whether it gets the picture or video itself.
    media: bool
    sampling: Sampling
    answer: Literal["text", "letter", "scores"]
    #: What a judge grades, in order; empty for all others.
    dimensions: Mapping[str, Dimension]
    #: Changes with everything that shapes the prompt, what it sees included.
    digest: str
    #: Whether it is asked once for each window of a long video.
    windows: bool = False
    #: What differs for it from the settings' media budget.
    limits: MediaLimits = field(default_factory=MediaLimits)


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of media and the agents that caption it."""

    name: str
    aliases: tuple[str, ...]
    modality: Modality
    #: What belongs here, as the router is told.
    description: str
    subdomains: tuple[str, ...]
    #: A label for people; changing it redoes nothing.
    version: int
    #: In the order of their stages.
    agents: tuple[Agent, ...]
    #: Changes with the digest of any agent.
    digest: str

    def agents_of(self, stage: Stage) -> tuple[Agent, ...]:
        return tuple(agent for agent in self.agents if agent.stage is stage)

    @property
    def captioner(self) -> Agent:
        """The agent whose text is the caption: the last one of the summarize stage."""
        return self.agents_of(Stage.SUMMARIZE)[-1]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All domains, and what their calls have in common."""

    #: The line that begins every prompt.
    system: str
    router: Agent
    domains: tuple[Domain, ...]

    def resolve(self, task: str) -> Domain:
        """The domain that goes by this name or alias; case and blanks do not matter."""
        for domain in self.domains:
            if folded(task) in map(folded, (domain.name, *domain.aliases)):
                return domain
        allowed = ", ".join(" or ".join((domain.name, *domain.aliases)) for domain in self.domains)
        raise WorkflowError(f"there is no domain {task!r}; use one of: {allowed}")

    @property
    def routable(self) -> tuple[Domain, ...]:
        """The domains the router chooses from: all for images, in catalogue order."""
        return tuple(domain for domain in self.domains if domain.modality is Modality.IMAGE)

    @property
    def letters(self) -> dict[str, Domain]:
        """The router's answers, A onwards, and what each means."""
        return dict(zip(ascii_uppercase, self.routable, strict=False))

    def for_video(self) -> Domain:
        """The domain that every video goes to unless it names another."""
        for domain in self.domains:
            if domain.modality is Modality.VIDEO:
                return domain
        raise WorkflowError("no domain has the modality video; give one file `modality: video`")


def load_catalogue(folder: Path | None = None) -> Catalogue:
    """The packaged domains with `folder` laid over them, in the order of the file names, added ones last.

    A file in `folder` takes the place of the packaged one of its name; its `_defaults.yaml` is merged over
    ours key by key. WorkflowError if a file cannot be used.
    """
    ours = read_folder(files("capflow_tasks") / "domains")
    theirs = read_folder(folder) if folder else {}
    defaults = merged_defaults(ours.pop(DEFAULTS), theirs.pop(DEFAULTS, {"agents": {}}))
    sources = (ours | theirs).values()
    refuse(domain_faults(sources))
    domains = tuple(make_domain(keys, defaults) for keys in sources)
    return Catalogue(defaults["system"], _router(defaults, domains), domains)


def _router(defaults: JsonObject, domains: tuple[Domain, ...]) -> Agent:
    images = [domain for domain in domains if domain.modality is Modality.IMAGE]
    routed = [[domain.name, domain.description, *domain.subdomains] for domain in images]
    keys = laid_over({"sampling": defaults["sampling"]}, defaults["router"])
    return _agent("router", keys, (), [defaults["system"], routed], f"{defaults['file']}: router")


def make_domain(keys: JsonObject, defaults: JsonObject) -> Domain:
    agents: tuple[Agent, ...] = ()
    for name, given in keys["agents"].items():
        shared = defaults["agents"].get(name, {})
        where = f"{keys['file']}: agents.{name}{'' if given else ' (as in _defaults.yaml)'}"
        below = {"sampling": defaults["sampling"], "budget": keys.get("budget", {})}
        merged = laid_over(laid_over(below, shared), given)
        agents += (_agent(name, merged, agents, [defaults["system"], keys["name"]], where),)
    if all(agent.stage is not Stage.SUMMARIZE for agent in agents):
        raise WorkflowError(
            f"{keys['file']}: agents: none is of stage summarize; add one, it writes the caption"
        )
    return Domain(
        name=keys["name"],
        aliases=tuple(keys["aliases"]),
        modality=Modality(keys["modality"]),
        description=keys["description"],
        subdomains=tuple(keys["subdomains"]),
        version=keys["version"],
        agents=agents,
        digest=_digest(keys["name"], [agent.digest for agent in agents]),
    )


def _agent(name: str, keys: JsonObject, earlier: tuple[Agent, ...], context: list[Any], where: str) -> Agent:
    """`context` is what shapes the prompt from outside the agent; it goes into the digest."""
    faults = agent_faults(name, keys, {agent.name: agent.stage for agent in earlier})
    refuse(f"{where}: {fault}" for fault in faults)
    agent = Agent(
        name=name,
        stage=Stage(keys["stage"]),
        prompt=keys["prompt"],
        sees=_seen(keys, earlier),
        media=keys.get("media", True),
        sampling=Sampling(**keys["sampling"]),
        answer=keys.get("answer", "text"),
        dimensions={word: Dimension(**rubric) for word, rubric in keys.get("dimensions", {}).items()},
        digest="",
        windows=keys.get("windows", False),
        limits=MediaLimits(**keys["budget"]),
    )
    seen = [other.digest for other in earlier if other.name in agent.sees]
    # Keys that an agent leaves out leave its digest as it was before there were such keys.
    said = {key: value for key, value in asdict(agent).items() if key not in ("windows", "limits")}
    media = [{"windows": True}] * agent.windows + [keys["budget"]] * bool(keys["budget"])
    return replace(agent, digest=_digest(context, said, list(agent.dimensions), seen, *media))


def _seen(keys: JsonObject, earlier: tuple[Agent, ...]) -> tuple[str, ...]:
    """The names in `sees` with `all` spelled out, and for a judge the agent whose caption it grades."""
    names = keys.get("sees", [])
    if names == ["all"]:
        names = [agent.name for agent in earlier if agent.stage in (Stage.PERCEIVE, Stage.REASON)]
    if keys["stage"] == Stage.SCORE:
        names = names + [agent.name for agent in earlier if agent.stage is Stage.SUMMARIZE][-1:]
    return tuple(dict.fromkeys(names))


def _digest(*parts: object) -> str:
    """12 hex digits that depend on what is said and not on how the file is laid out."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
