"""The YAML of domain files: which keys there are, and how a user's files are laid over the packaged ones.

Gives plain dicts whose keys and types are right. Knows nothing of what they mean: that is `rules.py` and
`catalogue.py`. Whatever is wrong in a file is a WorkflowError, a line per fault: file, key, fault, remedy.
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject
from capflow_tasks.yaml_file import Keys, read_yaml

DEFAULTS = "_defaults.yaml"

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_Seen = Annotated[list[_Name], BeforeValidator(lambda value: ["all"] if value == "all" else value)]


class _Sampling(Keys):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None


_Pixels = Annotated[int, Field(ge=28 * 28)]
_Frames = Annotated[int, Field(ge=2)]


class _Budget(Keys):
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


def read_folder(folder: Traversable) -> dict[str, JsonObject]:
    """What the *.yaml files of a folder say, by file name in sorted order; each also has its path, as `file`.

    A key that is null is left out, as if it were not there.
    """
    if not folder.is_dir():
        raise WorkflowError(f"{folder}: not a folder; name one that holds domain files (*.yaml)")
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    misnamed = [str(entry) for entry in entries if entry.name.endswith(".yml")]
    if misnamed:
        raise WorkflowError(f"{misnamed[0]}: domain files end in .yaml; rename it")
    return {entry.name: read_file(entry) for entry in entries if entry.name.endswith(".yaml")}


def merged_defaults(ours: JsonObject, theirs: JsonObject) -> JsonObject:
    """A user's `_defaults.yaml` over the packaged one, key by key, agent by agent."""
    names = [*ours["agents"], *(name for name in theirs["agents"] if name not in ours["agents"])]
    agents = {name: laid_over(ours["agents"].get(name, {}), theirs["agents"].get(name, {})) for name in names}
    router = laid_over(ours["router"], theirs.get("router", {}))
    return laid_over(ours, theirs) | {"router": router, "agents": agents}


def laid_over(below: JsonObject, above: JsonObject) -> JsonObject:
    """The keys of `above` in place of those of `below`; sampling and budget are merged by their own keys."""
    merged = {key: below.get(key, {}) | above.get(key, {}) for key in ("sampling", "budget")}
    return below | above | merged


def read_file(entry: Traversable) -> JsonObject:
    shape = _Defaults if entry.name == DEFAULTS else _Domain
    return read_yaml(entry, shape, WorkflowError).model_dump(exclude_none=True) | {"file": str(entry)}
