"""The catalogue: the packaged domains, overridden by a user's folder, with their agents and digests.

`files.py` reads and checks the YAML, `prompts.py` fills the prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from capflow_tasks.domains.files import (
    DEFAULTS,
    catalogue_faults,
    folded,
    merged_agents,
    merged_defaults,
    merged_router,
    read_folder,
)
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Modality, Sampling, Stage


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension that a judge grades."""

    description: str
    #: What earns a 1 (bad), a 2 (good) and a 3 (excellent).
    grades: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Agent:
    """One prompted role of the model."""

    name: str
    stage: Stage
    #: string.Template text with valid placeholders.
    prompt: str
    #: Earlier agents whose answers it reads; a judge also reads the agent that writes the caption.
    sees: tuple[str, ...]
    #: Whether it gets the picture or video.
    media: bool
    sampling: Sampling
    answer: Literal["text", "letter", "scores"]
    #: What a judge grades, in order; empty for other agents.
    dimensions: Mapping[str, Dimension]
    #: Changes with everything that shapes the prompt, including the agents it sees.
    digest: str
    #: Whether it is asked once per window of a long video.
    windows: bool = False
    #: What it changes in the settings' media budget.
    budget: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of media and the agents that caption it."""

    name: str
    aliases: tuple[str, ...]
    modality: Modality
    #: What belongs here, for the router.
    description: str
    subdomains: tuple[str, ...]
    #: A label for people; a change redoes nothing.
    version: int
    #: In stage order.
    agents: tuple[Agent, ...]
    #: Changes with any agent's digest.
    digest: str

    def agents_of(self, stage: Stage) -> tuple[Agent, ...]:
        return tuple(agent for agent in self.agents if agent.stage is stage)

    @property
    def captioner(self) -> Agent:
        """The agent that writes the caption: the last one of the summarize stage."""
        return self.agents_of(Stage.SUMMARIZE)[-1]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All domains, the router and the system line."""

    #: The first line of every prompt.
    system: str
    router: Agent
    domains: tuple[Domain, ...]

    def resolve(self, task: str) -> Domain:
        """Find a domain by name or alias, ignoring case and surplus blanks. Raises WorkflowError."""
        for domain in self.domains:
            if folded(task) in map(folded, (domain.name, *domain.aliases)):
                return domain
        allowed = ", ".join(" or ".join((domain.name, *domain.aliases)) for domain in self.domains)
        raise WorkflowError(f"there is no domain {task!r}; use one of: {allowed}")

    @property
    def routable(self) -> tuple[Domain, ...]:
        """The domains that the router chooses from: all for images, in catalogue order."""
        return tuple(domain for domain in self.domains if domain.modality is Modality.IMAGE)

    @property
    def letters(self) -> dict[str, Domain]:
        """The domain of each letter that the router may answer, from A."""
        return dict(zip(ascii_uppercase, self.routable, strict=False))

    def for_video(self) -> Domain:
        """Return the domain of every video that names no other. Raises WorkflowError."""
        for domain in self.domains:
            if domain.modality is Modality.VIDEO:
                return domain
        raise WorkflowError("no domain has the modality video; give one file `modality: video`")


def load_catalogue(folder: Path | None = None) -> Catalogue:
    """Load the packaged domains, then those of `folder`, in the order of their file names.

    A file in `folder` replaces the packaged file of its name; its `_defaults.yaml` is merged key by key.
    Raises WorkflowError with a line per fault.
    """
    ours, (theirs, faults) = dict(_packaged()), read_folder(folder) if folder else ({}, [])
    defaults = merged_defaults(ours.pop(DEFAULTS), theirs.pop(DEFAULTS, {"agents": {}}))
    sources = (ours | theirs).values()
    faults += catalogue_faults(sources, defaults)
    if faults:
        raise WorkflowError("\n".join(faults))
    domains = tuple(_domain(keys, defaults) for keys in sources)
    images = [domain for domain in domains if domain.modality is Modality.IMAGE]
    routed = [[domain.name, domain.description, *domain.subdomains] for domain in images]
    router = _agent("router", merged_router(defaults), (), [defaults["system"], routed])
    return Catalogue(defaults["system"], router, domains)


@cache
def _packaged() -> dict[str, JsonObject]:
    return read_folder(files("capflow_tasks") / "domains")[0]


def _domain(keys: JsonObject, defaults: JsonObject) -> Domain:
    agents: tuple[Agent, ...] = ()
    for name, merged in merged_agents(keys, defaults).items():
        agents += (_agent(name, merged, agents, [defaults["system"], keys["name"]]),)
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


def _agent(name: str, keys: JsonObject, earlier: tuple[Agent, ...], context: list[Any]) -> Agent:
    """Build an agent; `context` is what else shapes its prompt and enters the digest."""
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
        budget=keys["budget"],
    )
    seen = [other.digest for other in earlier if other.name in agent.sees]
    # without these keys the digest is the same as before the keys existed
    said = {key: value for key, value in asdict(agent).items() if key not in ("windows", "budget")}
    media = [{"windows": True}] * agent.windows + [keys["budget"]] * bool(keys["budget"])
    return replace(agent, digest=_digest(context, said, list(agent.dimensions), seen, *media))


def _seen(keys: JsonObject, earlier: tuple[Agent, ...]) -> tuple[str, ...]:
    """List the names in `sees`, with `all` expanded and, for a judge, the agent that writes the caption."""
    names = keys.get("sees", [])
    if names == ["all"]:
        names = [agent.name for agent in earlier if agent.stage in (Stage.PERCEIVE, Stage.REASON)]
    if keys["stage"] == Stage.SCORE:
        names = names + [agent.name for agent in earlier if agent.stage is Stage.SUMMARIZE][-1:]
    return tuple(dict.fromkeys(names))


def _digest(*parts: object) -> str:
    """Return 12 hex digits of the content, independent of the file's layout."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
