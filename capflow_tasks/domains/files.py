"""Domain files: which keys they have, how a user's file overrides a packaged one, and which rules hold.

Gives plain dicts whose keys and types are right, and faults as lines: file, key, fault, remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.resources.abc import Traversable
from string import Template, ascii_uppercase
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from capflow_tasks.domains.yaml_file import Keys, read_yaml
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import BUDGET_PAIRS, JsonObject, Modality, Stage

DEFAULTS = "_defaults.yaml"

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_Seen = Annotated[list[_Name], BeforeValidator(lambda value: ["all"] if value == "all" else value)]
_Pixels = Annotated[int, Field(ge=28 * 28)]
_Frames = Annotated[int, Field(ge=2)]


class _Sampling(Keys):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None


class _Budget(Keys):
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


class _Dimension(Keys):
    description: _Text
    grades: Annotated[dict[Literal[1, 2, 3], _Text], Field(min_length=3)]


class _Agent(Keys):
    stage: Literal["route", "perceive", "reason", "summarize", "score"] | None = None
    prompt: _Text | None = None
    sees: _Seen | None = None
    media: bool | None = None
    windows: bool | None = None
    budget: _Budget | None = None
    sampling: _Sampling | None = None
    answer: Literal["text", "letter", "scores"] | None = None
    dimensions: dict[_Name, _Dimension] | None = None


_AgentOrNull = Annotated[_Agent, BeforeValidator(lambda keys: {} if keys is None else keys)]


class _Domain(Keys):
    name: _Text
    aliases: list[_Text] = Field(default_factory=list)
    modality: Literal["image", "video"] = "image"
    description: _Text
    subdomains: list[_Text] = Field(default_factory=list)
    version: Annotated[int, Field(ge=1)] = 1
    budget: _Budget | None = None
    agents: Annotated[dict[_Name, _AgentOrNull], Field(min_length=1)]


class _Defaults(Keys):
    system: _Text | None = None
    sampling: _Sampling | None = None
    router: _Agent | None = None
    agents: dict[_Name, _AgentOrNull] = Field(default_factory=dict)


def read_folder(folder: Traversable) -> tuple[dict[str, JsonObject], list[str]]:
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
            keys = read_yaml(entry, _Defaults if entry.name == DEFAULTS else _Domain, WorkflowError)
            found[entry.name] = keys.model_dump(exclude_none=True) | {"file": str(entry)}
        except WorkflowError as error:
            faults += str(error).splitlines()
    return found, faults


def merged_defaults(ours: JsonObject, theirs: JsonObject) -> JsonObject:
    """Merge a user's `_defaults.yaml` into the packaged one, key by key and agent by agent."""
    names = dict.fromkeys([*ours["agents"], *theirs["agents"]])
    agents = {
        name: overridden_by(ours["agents"].get(name, {}), theirs["agents"].get(name, {})) for name in names
    }
    router = overridden_by(ours["router"], theirs.get("router", {}))
    return overridden_by(ours, theirs) | {"router": router, "agents": agents}


def overridden_by(below: JsonObject, above: JsonObject) -> JsonObject:
    """Replace the keys of `below` by those of `above`; merge sampling and budget key by key."""
    merged = {key: below.get(key, {}) | above.get(key, {}) for key in ("sampling", "budget")}
    return below | above | merged


def merged_agents(keys: JsonObject, defaults: JsonObject) -> dict[str, JsonObject]:
    """Merge a domain's agents; sampling and budget merge from the defaults to the domain to the agent."""
    below = {"sampling": defaults["sampling"], "budget": keys.get("budget", {})}
    return {
        name: overridden_by(overridden_by(below, defaults["agents"].get(name, {})), given)
        for name, given in keys["agents"].items()
    }


def merged_router(defaults: JsonObject) -> JsonObject:
    return overridden_by({"sampling": defaults["sampling"]}, defaults["router"])


def folded(name: str) -> str:
    """Return a domain's name as it is compared: without case and surplus blanks."""
    return " ".join(name.split()).casefold()


def catalogue_faults(domains: Collection[JsonObject], defaults: JsonObject) -> Iterator[str]:
    """Find what breaks a rule in the domains or the router."""
    owners: dict[str, str] = {}
    images = 0
    for keys in domains:
        for name in sorted({folded(name) for name in (keys["name"], *keys["aliases"])}):
            if owners.setdefault(name, keys["file"]) != keys["file"]:
                yield (
                    f"{keys['file']}: name or aliases: {name!r} belongs to {owners[name]}; "
                    "choose another, or give your file the same file name to replace that one"
                )
        images += keys["modality"] == Modality.IMAGE
        if images > len(ascii_uppercase):
            yield f"{keys['file']}: the router has letters for 26 image domains; remove this one or another"
    for keys in domains:
        yield from _agents_faults(keys, defaults)
    for fault in _agent_faults("router", merged_router(defaults), {}):
        yield f"{defaults['file']}: router: {fault}"


def _agents_faults(keys: JsonObject, defaults: JsonObject) -> Iterator[str]:
    earlier: dict[str, Stage] = {}
    is_sound = True
    for name, merged in merged_agents(keys, defaults).items():
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


def _agent_faults(name: str, keys: JsonObject, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Find what is wrong with an agent that comes after `earlier`; each fault begins with its key."""
    missing = [key for key in ("stage", "prompt") if key not in keys]
    if missing:
        yield f"{missing[0]}: missing here and in _defaults.yaml; add it, or correct the agent's name"
        return
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
    yield from _prompt_faults(stage, keys)


def _stage_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    """Find keys that do not fit the agent's stage, or each other."""
    expected = {Stage.ROUTE: "letter", Stage.SCORE: "scores"}.get(stage, "text")
    if keys.get("answer", "text") != expected:
        yield f"answer: stage {stage} needs {expected}; use that"
    dimensions = keys.get("dimensions", {})
    if bool(dimensions) != (stage is Stage.SCORE):
        yield "dimensions: an agent of stage score needs some, no other may have any; fix that or the stage"
    if "overall" in dimensions:
        yield "dimensions: overall is always graded; remove it or choose another name"
    if keys.get("windows") and (stage is not Stage.PERCEIVE or not keys.get("media", True)):
        yield "windows: for an agent of stage perceive that gets the media; remove it, or change those"
    budget = keys["budget"]
    for least, most in (*BUDGET_PAIRS, ("frame_min_pixels", "total_pixels")):
        if least in budget and most in budget and budget[least] > budget[most]:
            yield f"budget: {least} {budget[least]} is above {most} {budget[most]}; change one of them"


def _prompt_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    template = Template(keys["prompt"])
    if not template.is_valid():
        yield "prompt: a $ stands alone; write $$ for a dollar sign"
        return
    window = {"window"} if keys.get("windows") else set()
    used, known = set(template.get_identifiers()), _PLACEHOLDERS.get(stage, {"domain", "reports"}) | window
    if used - known:
        yield f"prompt: unknown placeholder {_listed(used - known)}; use {_listed(known)}"
    needed = _ESSENTIAL.get(stage, set()) | ({"reports"} if keys.get("sees") else set()) | window
    if needed - used:
        yield f"prompt: lacks {_listed(needed - used)}, which the model would never see; add it"


def _listed(placeholders: set[str]) -> str:
    return ", ".join(f"${word}" for word in sorted(placeholders))
