"""What domains and agents must keep to beyond the shape of their files.

Knows the stages, the placeholders of prompts and the router's letters. Knows nothing of YAML: it looks at
plain dicts and yields faults, one line each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from string import Template, ascii_uppercase

from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Modality, Stage

_ORDER = tuple(Stage)
_ANSWERS = {Stage.ROUTE: "letter", Stage.SCORE: "scores"}
_PLACEHOLDERS = {Stage.ROUTE: {"domains"}, Stage.SCORE: {"domain", "reports", "caption", "dimensions"}}
#: The least and the most of the same thing in a media budget.
_PAIRS = (
    ("min_pixels", "max_pixels"),
    ("min_frames", "max_frames"),
    ("frame_min_pixels", "frame_max_pixels"),
    ("frame_min_pixels", "total_pixels"),
)
#: Without these a prompt would leave out what its stage is about.
_ESSENTIAL = {Stage.ROUTE: {"domains"}, Stage.SCORE: {"caption"}}


def refuse(faults: Iterable[str]) -> None:
    """WorkflowError with all the faults, if there are any."""
    lines = list(faults)
    if lines:
        raise WorkflowError("\n".join(lines))


def folded(name: str) -> str:
    """A domain's name as it is compared: without regard to case and blanks."""
    return " ".join(name.split()).casefold()


def domain_faults(domains: Iterable[JsonObject]) -> Iterator[str]:
    """Names and aliases that two domain files claim, and image domains for which no letter is left."""
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


def agent_faults(name: str, keys: JsonObject, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """What is wrong with an agent that comes after `earlier`, each fault beginning with the key to mend."""
    missing = [key for key in ("stage", "prompt") if key not in keys]
    if missing:
        yield f"{missing[0]}: missing here and in _defaults.yaml; add it, or correct the agent's name"
        return
    stage = Stage(keys["stage"])
    yield from _stage_faults(name, stage, earlier)
    yield from _answer_faults(stage, keys)
    yield from _media_faults(stage, keys)
    for seen in keys.get("sees", []):
        if seen != "all" and seen not in earlier:
            known = ", ".join(earlier) or "none"
            yield f"sees: {seen!r} is not listed before {name}; use all, or some of: {known}"
    yield from _prompt_faults(stage, keys)


def _stage_faults(name: str, stage: Stage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    if (stage is Stage.ROUTE) != (name == "router"):
        yield "stage: route belongs to the router alone; use perceive, reason, summarize or score"
    for other, before in list(earlier.items())[-1:]:
        if _ORDER.index(stage) < _ORDER.index(before):
            yield f"stage: {stage} cannot follow {other} ({before}); list the agents by stage"


def _answer_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    expected = _ANSWERS.get(stage, "text")
    if keys.get("answer", "text") != expected:
        yield f"answer: stage {stage} needs {expected}; give that"
    dimensions = keys.get("dimensions", {})
    if bool(dimensions) != (stage is Stage.SCORE):
        yield "dimensions: an agent of stage score needs some, no other may have any; mend that or the stage"
    if "overall" in dimensions:
        yield "dimensions: overall is always graded, beside them; remove it or choose another name"


def _media_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    if keys.get("windows") and (stage is not Stage.PERCEIVE or not keys.get("media", True)):
        yield "windows: for an agent of stage perceive that gets the media; remove it, or change those"
    budget = keys["budget"]
    for least, most in _PAIRS:
        if least in budget and most in budget and budget[least] > budget[most]:
            yield f"budget: {least} {budget[least]} is above {most} {budget[most]}; mend one of them"


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
        yield f"prompt: lacks {_listed(needed - used)}, which the model would never see; put it in"


def _listed(placeholders: set[str]) -> str:
    return ", ".join(f"${word}" for word in sorted(placeholders))
