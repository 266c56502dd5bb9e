"""The catalogue: the packaged domains, overridden by a user's folder, with their agents and digests.

`prompts.py` fills the prompts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic.dataclasses import dataclass

from capflow_tasks.domains.schemas import answer_faults, closed
from capflow_tasks.domains.verifier import VERIFIER, Verifier, VerifierKeys, cutting_faults, read_verifier
from capflow_tasks.domains.workflows import EXAM, RESHAPED
from capflow_tasks.domains.yaml_file import Keys, Text, placeholder_faults, read_yaml
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import BUDGET_PAIRS, LANGUAGES, JsonObject, Modality, Sampling, Stage, Workflow


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension that a judge grades."""

    description: str
    #: What earns a 1 (bad), a 2 (good) and a 3 (excellent).
    grades: Mapping[int, str]
    #: Whether the overall grade depends on it; where no dimension is decisive, all are.
    decisive: bool = False


@dataclass(frozen=True, slots=True)
class Agent:
    """One prompted role of the model."""

    name: str
    stage: Stage
    #: Earlier agents whose answers it reads; a judge also reads the agent that writes the caption.
    sees: tuple[str, ...]
    sampling: Sampling
    #: string.Template text with valid placeholders; empty for a tool.
    prompt: str = ""
    #: Whether it gets the picture or video.
    media: bool = True
    #: `choice`: the letter of one of the choices of a sample's question.
    answer: Literal["text", "letter", "scores", "json", "choice"] = "text"
    #: JSON schema of an answer of `json`.
    schema: Mapping[str, Any] | None = None
    #: What a judge grades, in order; empty for other agents.
    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    #: Changes with everything that shapes the prompt, including the agents it sees.
    digest: str = ""
    #: Whether it is asked once per window of a long video.
    windows: bool = False
    #: What it changes in the settings' media budget.
    budget: Mapping[str, int | float] = field(default_factory=dict)
    #: ISO 639-1 code of the language that it answers in, or `any`.
    language: str = "en"
    #: Whether it repeats what stands in the media, in the language and layout found there.
    verbatim: bool = False
    #: Whether the sample goes on without its answer when the guard refuses that.
    optional: bool = False
    #: Whether a model that can is to think before its answer, for up to `sampling.thinking_tokens`.
    thinking: bool = False
    #: What puts the router's confidence right; see `capflow domains calibrate`.
    confidence_temperature: float = 1.0
    #: Draws for each sample the order in which the router is offered the domains; None for that of the files.
    order_seed: int | None = None
    #: The program that answers in place of the model; empty for none.
    tool: Literal["", "ocr"] = ""
    #: What agents that read a tool's answer are told about it.
    note: str = ""


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
    #: Added to a captioner's prompt when a sample's caption is written again.
    again: str
    #: None where captions are not verified.
    verifier: Verifier | None = None

    def resolve(self, task: str) -> Domain:
        """Find a domain by name or alias, ignoring case and surplus blanks. Raises WorkflowError."""
        for domain in self.domains:
            if _folded(task) in map(_folded, (domain.name, *domain.aliases)):
                return domain
        allowed = ", ".join(" or ".join((domain.name, *domain.aliases)) for domain in self.domains)
        raise WorkflowError(f"there is no domain {task!r}; use one of: {allowed}")

    @property
    def stages(self) -> frozenset[Stage]:
        """The stages in which any domain has an agent, and that of the router."""
        return frozenset({Stage.ROUTE, *(agent.stage for domain in self.domains for agent in domain.agents)})

    @property
    def routable(self) -> tuple[Domain, ...]:
        """The domains that the router chooses from: all for images, in catalogue order."""
        return tuple(domain for domain in self.domains if domain.modality is Modality.IMAGE)

    @property
    def letters(self) -> dict[str, Domain]:
        """The domain of each letter that the router may answer, from A."""
        return dict(zip(ascii_uppercase, self.routable, strict=False))

    def in_order_for(self, sample: str) -> "Catalogue":
        """Return the catalogue with its domains in this sample's order, the same each time."""
        if self.router.order_seed is None:
            return self
        domains = list(self.domains)
        Random(f"{self.router.order_seed} {sample}").shuffle(domains)
        return replace(self, domains=tuple(domains))

    def for_video(self) -> Domain:
        """Return the domain of every video that names no other. Raises WorkflowError."""
        for domain in self.domains:
            if domain.modality is Modality.VIDEO:
                return domain
        raise WorkflowError("no domain has the modality video; give one file `modality: video`")


def _folded(name: str) -> str:
    """Return a domain's name as it is compared: without case and surplus blanks."""
    return " ".join(name.split()).casefold()


def load_workflow(workflow: str, folder: Path | None = None, language: str = "en") -> Catalogue:
    """Load a run's workflow: one with a name, or a folder of domain files that takes the place of `folder`.

    Raises WorkflowError with a line per fault.
    """
    is_named = workflow in {*Workflow, EXAM}
    return load_catalogue(folder if is_named else Path(workflow), language, workflow)


def load_catalogue(
    folder: Path | None = None, language: str = "en", workflow: str = Workflow.STANDARD
) -> Catalogue:
    """Load the packaged domains, then those of `folder`, in the order of their file names.

    `language` is the ISO 639-1 code of the captions where no file names another. In the fast workflow each
    domain's agents make way for one that captions at once, and its judges see the caption only. In EXAM they
    make way for those that write questions and answer them.
    A file in `folder` replaces the packaged file of its name; its `_defaults.yaml` is merged key by key.
    Raises WorkflowError with a line per fault.
    """
    ours, (theirs, faults) = dict(_packaged()), _read_folder(folder) if folder else ({}, [])
    defaults = _merged_defaults(ours.pop(_DEFAULTS), theirs.pop(_DEFAULTS, {"agents": {}}))
    defaults.setdefault("language", language)
    read = list((ours | theirs).values())
    if workflow in RESHAPED:
        read = [RESHAPED[workflow](keys, defaults["agents"]) for keys in read]
    sources = [_with_merged_agents(keys, defaults) for keys in read]
    faults += _name_faults(sources)
    faults += (fault for keys in sources for fault in _agents_faults(keys))
    faults += (
        f"{defaults['file']}: router: {fault}" for fault in _agent_faults("router", defaults["router"], {})
    )
    again_faults = [f"again: {fault}" for fault in placeholder_faults(defaults["again"], _AGAIN, _AGAIN)]
    verifier_keys = defaults.get("verify", {})
    verifier, verifier_faults = read_verifier(verifier_keys, workflow == Workflow.VERIFIED)
    faults += (f"{defaults['file']}: {fault}" for fault in again_faults + verifier_faults)
    faults += cutting_faults(verifier_keys, sources)
    if faults:
        raise WorkflowError("\n".join(faults))
    domains = tuple(_domain(keys, defaults["system"], verifier) for keys in sources)
    images = [domain for domain in domains if domain.modality is Modality.IMAGE]
    routed = [[domain.name, domain.description, *domain.subdomains] for domain in images]
    router = _agent("router", defaults["router"], (), [defaults["system"], routed])
    return Catalogue(defaults["system"], router, domains, defaults["again"], verifier)


@cache
def _packaged() -> dict[str, JsonObject]:
    return _read_folder(files("capflow_tasks") / "domains")[0]


#: What the domains share: the system line, the router, and agents that a domain may name.
_DEFAULTS = "_defaults.yaml"

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_Seen = Annotated[list[_Name], BeforeValidator(lambda value: ["all"] if value == "all" else value)]
_Pixels = Annotated[int, Field(ge=28 * 28)]
_Frames = Annotated[int, Field(ge=2)]
_Language = Literal["any", *LANGUAGES]  # type: ignore[valid-type]


class _SamplingKeys(Keys):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    thinking_tokens: Annotated[int, Field(ge=1)] | None = None


class _BudgetKeys(Keys):
    """What may be changed of `MediaBudget`, by its names."""

    min_pixels: _Pixels | None = None
    max_pixels: _Pixels | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    min_frames: _Frames | None = None
    max_frames: _Frames | None = None
    frame_min_pixels: _Pixels | None = None
    frame_max_pixels: _Pixels | None = None
    total_pixels: _Pixels | None = None
    window_frames: Annotated[int, Field(ge=4)] | None = None
    max_windows: Annotated[int, Field(ge=1)] | None = None


class _DimensionKeys(Keys):
    description: Text
    grades: Annotated[dict[Literal[1, 2, 3], Text], Field(min_length=3)]
    decisive: bool | None = None


class _AgentKeys(Keys):
    stage: Literal["route", "perceive", "reason", "summarize", "score"] | None = None
    prompt: Text | None = None
    tool: Literal["ocr"] | None = None
    note: Text | None = None
    sees: _Seen | None = None
    media: bool | None = None
    language: _Language | None = None
    verbatim: bool | None = None
    optional: bool | None = None
    thinking: bool | None = None
    confidence_temperature: Annotated[float, Field(ge=0.05, le=20)] | None = None
    order_seed: int | None = None
    windows: bool | None = None
    budget: _BudgetKeys | None = None
    sampling: _SamplingKeys | None = None
    answer: Literal["text", "letter", "scores", "json", "choice"] | None = None
    answer_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    dimensions: dict[_Name, _DimensionKeys] | None = None


_AgentOrNull = Annotated[_AgentKeys, BeforeValidator(lambda keys: {} if keys is None else keys)]


class _DomainKeys(Keys):
    name: Text
    aliases: list[Text] = Field(default_factory=list)
    modality: Literal["image", "video"] = "image"
    description: Text
    subdomains: list[Text] = Field(default_factory=list)
    version: Annotated[int, Field(ge=1)] = 1
    language: _Language | None = None
    budget: _BudgetKeys | None = None
    agents: Annotated[dict[_Name, _AgentOrNull], Field(min_length=1)]


class _DefaultsKeys(Keys):
    system: Text | None = None
    again: Text | None = None
    verify: VerifierKeys | None = None
    language: _Language | None = None
    sampling: _SamplingKeys | None = None
    router: _AgentKeys | None = None
    agents: dict[_Name, _AgentOrNull] = Field(default_factory=dict)


def _read_folder(folder: Traversable) -> tuple[dict[str, JsonObject], list[str]]:
    """Read the *.yaml files of a folder; return their keys by sorted file name, and a line per fault.

    Keys that are null are left out; `file` is the path. Raises WorkflowError if there is no such folder.
    """
    if not folder.is_dir():
        raise WorkflowError(f"{folder}: not a folder; name one that holds domain files (*.yaml)")
    found: dict[str, JsonObject] = {}
    faults: list[str] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yml"):
            faults.append(f"{entry}: domain files end in .yaml; rename it")
        if not entry.name.endswith(".yaml"):
            continue
        try:
            keys = read_yaml(entry, _DefaultsKeys if entry.name == _DEFAULTS else _DomainKeys, WorkflowError)
            found[entry.name] = keys.model_dump(exclude_none=True, by_alias=True) | {"file": str(entry)}
        except WorkflowError as error:
            faults += str(error).splitlines()
    return found, faults


def _merged_defaults(ours: JsonObject, theirs: JsonObject) -> JsonObject:
    """Merge a user's `_defaults.yaml` into the packaged one, key by key and agent by agent."""
    defaults = _merged(ours, theirs)
    own, other = ours["agents"], theirs["agents"]
    defaults["agents"] = {name: _merged(own.get(name, {}), other.get(name, {})) for name in own | other}
    sampling = {"sampling": defaults["sampling"]}
    defaults["router"] = _merged(sampling, ours["router"], theirs.get("router", {}))
    return defaults


def _with_merged_agents(keys: JsonObject, defaults: JsonObject) -> JsonObject:
    """Add `merged`, the agents with their sampling and budget from the defaults, the domain and the agent."""
    below = {"sampling": defaults["sampling"], "budget": keys.get("budget", {})}
    below["language"] = keys.get("language", defaults["language"])
    shared, agents = defaults["agents"], keys["agents"].items()
    return keys | {"merged": {name: _merged(below, shared.get(name, {}), own) for name, own in agents}}


def _merged(*layers: JsonObject) -> JsonObject:
    """Replace the keys of each layer by those of the next; merge sampling and budget key by key."""
    result: JsonObject = {}
    for layer in layers:
        inner = {key: result.get(key, {}) | layer.get(key, {}) for key in ("sampling", "budget")}
        result = result | layer | inner
    return result


def _name_faults(domains: list[JsonObject]) -> Iterator[str]:
    """Find names and aliases that two domain files claim, and image domains beyond the last letter."""
    owners: dict[str, str] = {}
    images = 0
    for keys in domains:
        for name in sorted({_folded(name) for name in (keys["name"], *keys["aliases"])}):
            if owners.setdefault(name, keys["file"]) != keys["file"]:
                yield (
                    f"{keys['file']}: name or aliases: {name!r} belongs to {owners[name]}; "
                    "choose another, or give your file the same file name to replace that one"
                )
        images += keys["modality"] == Modality.IMAGE
        if images > len(ascii_uppercase):
            yield f"{keys['file']}: the router has letters for 26 image domains; remove this one or another"


def _agents_faults(keys: JsonObject) -> Iterator[str]:
    earlier: dict[str, Stage] = {}
    is_sound = True
    for name, merged in keys["merged"].items():
        where = f"agents.{name}{'' if keys['agents'][name] else ' (as in _defaults.yaml)'}"
        for fault in _agent_faults(name, merged, earlier):
            is_sound = False
            yield f"{keys['file']}: {where}: {fault}"
        if "stage" in merged:
            earlier[name] = Stage(merged["stage"])
    if is_sound and Stage.SUMMARIZE not in earlier.values():
        yield f"{keys['file']}: agents: none is of stage summarize; add one, it writes the caption"


_PLACEHOLDERS = {Stage.ROUTE: {"domains"}, Stage.SCORE: {"domain", "reports", "caption", "dimensions"}}
#: Placeholders without which a prompt lacks the subject of its stage.
_ESSENTIAL = {Stage.ROUTE: {"domains"}, Stage.SCORE: {"caption"}}
#: The placeholders of `again`, all of them needed.
_AGAIN = {"caption", "errors"}


def _agent_faults(name: str, keys: JsonObject, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Find what is wrong with an agent that comes after `earlier`; each fault begins with its key."""
    missing = [key for key in ("stage", "note" if "tool" in keys else "prompt") if key not in keys]
    if missing:
        yield f"{missing[0]}: missing here and in _defaults.yaml; add it, or correct the agent's name"
        return
    if name == VERIFIER:
        yield "the name is that of the list of a caption's claims; choose another"
    stage, order = Stage(keys["stage"]), list(Stage)
    if (stage is Stage.ROUTE) != (name == "router"):
        yield "stage: route belongs to the router alone; use perceive, reason, summarize or score"
    for other, before in list(earlier.items())[-1:]:
        if order.index(stage) < order.index(before):
            yield f"stage: {stage} cannot follow {other} ({before}); list the agents by stage"
    for seen in keys.get("sees", []):
        if seen != "all" and seen not in earlier:
            known = ", ".join(earlier) or "none"
            yield f"sees: {seen!r} is not listed before {name}; use all, or some of: {known}"
    yield from _stage_faults(stage, keys)
    yield from _tool_faults(stage, keys) if {"tool", "note"} & keys.keys() else _prompt_faults(stage, keys)


#: The keys of the router alone.
_ROUTERS = {"confidence_temperature", "order_seed"}


def _stage_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    """Find keys that do not fit the agent's stage, or each other."""
    yield from answer_faults(stage, keys)
    dimensions = keys.get("dimensions", {})
    if bool(dimensions) != (stage is Stage.SCORE and keys.get("answer") != "choice"):
        yield "dimensions: an agent of stage score needs some, no other may have any; fix that or the stage"
    for name in ("overall", "errors"):
        if name in dimensions:
            yield f"dimensions: {name} is always given; remove it or choose another name"
    if keys.get("windows") and (stage is not Stage.PERCEIVE or not keys.get("media", True)):
        yield "windows: for an agent of stage perceive that gets the media; remove it, or change those"
    if stage is not Stage.ROUTE:
        yield from (f"{key}: for the router; remove it" for key in sorted(_ROUTERS & keys.keys()))
    if keys.get("optional") and stage not in (Stage.PERCEIVE, Stage.REASON):
        yield "optional: for an agent of stage perceive or reason, since others need its answer; remove it"
    budget = keys["budget"]
    for least, most in (*BUDGET_PAIRS, ("frame_min_pixels", "total_pixels")):
        if least in budget and most in budget and budget[least] > budget[most]:
            yield f"budget: {least} {budget[least]} is above {most} {budget[most]}; change one of them"


#: The keys of agents that are answered by the model.
_MODELS = {"prompt", "sees", "media", "answer", "windows", "thinking", "optional", "verbatim", "dimensions"}


def _tool_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    if "tool" not in keys:
        yield "note: for an agent with a tool; remove it"
    elif stage is not Stage.PERCEIVE:
        yield "tool: for an agent of stage perceive; change the stage, or write a prompt"
    else:
        yield from (f"{key}: a tool has none; remove it" for key in sorted(_MODELS & keys.keys()))


def _prompt_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    window = {"window"} if keys.get("windows") else set()
    asked = {"question", "choices"} if keys.get("answer") == "choice" else set()
    known = _PLACEHOLDERS.get(stage, {"domain", "reports"}) | window | asked
    needed = _ESSENTIAL.get(stage, set()) | ({"reports"} if keys.get("sees") else set()) | window | asked
    yield from (f"prompt: {fault}" for fault in placeholder_faults(keys["prompt"], known, needed))


def _domain(keys: JsonObject, system: str, verifier: Verifier | None) -> Domain:
    agents: tuple[Agent, ...] = ()
    captioner = [name for name, merged in keys["merged"].items() if merged["stage"] == Stage.SUMMARIZE][-1]
    for name, merged in keys["merged"].items():
        is_verified = name == captioner and merged.get("media", True)
        verified = [verifier.digest] if verifier and is_verified else []
        agents += (_agent(name, merged, agents, [system, keys["name"], *verified]),)
    digest = _digest(keys["name"], [agent.digest for agent in agents])
    return Domain(**keys | {"agents": agents, "digest": digest})


def _agent(name: str, keys: JsonObject, earlier: tuple[Agent, ...], context: list[Any]) -> Agent:
    """Build an agent; `context` is what else shapes its prompt and enters the digest."""
    sampling = keys["sampling"] | ({} if keys.get("thinking") else {"thinking_tokens": 0})
    keys |= {"schema": closed(keys["schema"])} if "schema" in keys else {}
    agent = Agent(name=name, **keys | {"sees": _seen(keys, earlier), "sampling": sampling})
    seen = [other.digest for other in earlier if other.name in agent.sees]
    # without these keys the digest is the same as before the keys existed
    late = {"windows", "budget", "optional", "thinking", "tool", "note", "schema"} | _ROUTERS
    said = {key: value for key, value in asdict(agent).items() if key not in late}
    said["sampling"] = {key: value for key, value in said["sampling"].items() if value is not None}
    set_keys: list[JsonObject] = [{"windows": True}] * agent.windows + [keys["budget"]] * bool(keys["budget"])
    late_set = {"order_seed": agent.order_seed, "schema": agent.schema}
    set_keys += [{key: value} for key, value in late_set.items() if value is not None]
    set_keys += [{"tool": agent.tool, "note": agent.note}] * bool(agent.tool)
    return replace(agent, digest=_digest(context, said, list(agent.dimensions), seen, *set_keys))


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
