"""The YAML of domain files: which keys there are, and how a user's files are laid over the packaged ones.

Gives plain dicts whose keys and types are right. Knows nothing of what they mean: that is `domain_rules.py`
and `domains.py`. Whatever is wrong in a file is a WorkflowError, a line per fault: file, key, fault, remedy.
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject

DEFAULTS = "_defaults.yaml"

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_Seen = Annotated[list[_Name], BeforeValidator(lambda value: ["all"] if value == "all" else value)]


class _Keys(BaseModel):
    """A mapping in a domain file."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, keys: Any) -> Any:
        unknown = [key for key in keys if key not in cls.model_fields] if isinstance(keys, dict) else []
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise ValueError(f"unknown key {names}; remove it or use one of: {', '.join(cls.model_fields)}")
        return keys


class _Sampling(_Keys):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None


_Pixels = Annotated[int, Field(ge=28 * 28)]
_Frames = Annotated[int, Field(ge=2)]


class _Budget(_Keys):
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


class _Dimension(_Keys):
    description: _Text
    grades: Annotated[dict[Literal[1, 2, 3], _Text], Field(min_length=3)]


class _Agent(_Keys):
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


class _Domain(_Keys):
    name: _Text
    aliases: list[_Text] = []
    modality: Literal["image", "video"] = "image"
    description: _Text
    subdomains: list[_Text] = []
    version: Annotated[int, Field(ge=1)] = 1
    budget: _Budget | None = None
    agents: Annotated[dict[_Name, _AgentOrNull], Field(min_length=1)]


class _Defaults(_Keys):
    system: _Text | None = None
    sampling: _Sampling | None = None
    router: _Agent | None = None
    agents: dict[_Name, _AgentOrNull] = {}


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key given twice, of which it would silently keep the last."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"key {key.value!r} is given twice; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


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
    try:
        keys = yaml.load(entry.read_text(encoding="utf-8"), _Loader)
        return shape.model_validate(keys).model_dump(exclude_none=True) | {"file": str(entry)}
    except ValidationError as error:
        raise WorkflowError("\n".join(_line(entry, fault) for fault in error.errors())) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise WorkflowError(f"{entry}: line {line}: {error.problem}; mend the YAML there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise WorkflowError(f"{entry}: not YAML in UTF-8 ({reason}); save it as such") from None
    except OSError as error:
        raise WorkflowError(f"{entry}: cannot be read ({error.strerror}); check its permissions") from None


def _line(entry: Traversable, fault: Any) -> str:
    """One fault as pydantic found it, in one line."""
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "top level"
    if fault["type"] == "value_error":
        return f"{entry}: {key}: {fault['ctx']['error']}"
    if fault["type"] == "missing":
        return f"{entry}: {key}: missing; add it"
    given = repr(fault["input"])
    return f"{entry}: {key}: {fault['msg']}; change {given if len(given) <= 60 else given[:57] + '...'}"
