"""Finds all that is wrong in a user's folder of domain files; a run stops at the first file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import av
from PIL import Image

from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain, load_catalogue, make_domain
from capflow_tasks.domains.files import (
    DEFAULTS,
    agent_faults,
    domain_faults,
    merged_defaults,
    overridden_by,
    read_file,
    read_folder,
)
from capflow_tasks.domains.prompts import instruction_for, router_instruction
from capflow_tasks.errors import MediaUnsupported, SampleError, UserError, WorkflowError
from capflow_tasks.media.paths import check_file, unrecognised
from capflow_tasks.records import JsonObject, Modality, Stage
from capflow_tasks.settings import Settings


def folder_faults(folder: Path) -> list[str]:
    """One line per fault: file, key, fault, remedy. Empty when the folder can be used."""
    ours = read_folder(files("capflow_tasks") / "domains")
    theirs, faults = _read_each(folder)
    defaults = merged_defaults(ours.pop(DEFAULTS), theirs.pop(DEFAULTS, {"agents": {}}))
    sources = (ours | theirs).values()
    faults += domain_faults(sources)
    for keys in sources:
        faults += list(_agents_faults(keys, defaults)) or _faults_of(partial(make_domain, keys, defaults))
    return faults or _faults_of(partial(load_catalogue, folder))


def _read_each(folder: Path) -> tuple[dict[str, JsonObject], list[str]]:
    """What the files say that can be read, by name, and what is wrong with the others."""
    names = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
    if not names:
        return {}, [f"{folder}: holds no domain file; name a folder with at least one *.yaml"]
    found: dict[str, JsonObject] = {}
    faults: list[str] = []
    for name in names:
        try:
            found[name] = read_file(folder / name)
        except WorkflowError as error:
            faults += str(error).splitlines()
    return found, faults


def _agents_faults(keys: JsonObject, defaults: JsonObject) -> Iterator[str]:
    """What is wrong with each of a domain's agents, and not just with the first."""
    earlier: dict[str, Stage] = {}
    for name, given in keys["agents"].items():
        shared = overridden_by({"sampling": defaults["sampling"]}, defaults["agents"].get(name, {}))
        merged = overridden_by(shared, given)
        for fault in agent_faults(name, merged, earlier):
            yield f"{keys['file']}: agents.{name}: {fault}"
        if "stage" in merged:
            earlier[name] = Stage(merged["stage"])


def _faults_of(load: Callable[[], object]) -> list[str]:
    try:
        load()
    except WorkflowError as error:
        return str(error).splitlines()
    return []


#: Pixels that become one token of Qwen2.5-VL.
_TOKEN_PIXELS = 28 * 28


@dataclass(frozen=True, slots=True)
class Prompt:
    """One call, in the order in which the model reads it."""

    agent: Agent
    system: str
    #: What stands for the picture or video; None when the agent does not get it.
    media: str | None
    instruction: str


def render(catalogue: Catalogue, domain: Domain, media: str) -> Iterator[Prompt]:
    """Every call for a sample of the domain, in order; what an earlier agent writes is a placeholder."""
    calls = [(agent, _instruction(agent, domain)) for agent in domain.agents]
    if domain.modality is Modality.IMAGE:
        calls.insert(0, (catalogue.router, router_instruction(catalogue)))
    for agent, instruction in calls:
        yield Prompt(agent, catalogue.system, media if agent.media else None, instruction)


def _instruction(agent: Agent, domain: Domain) -> str:
    return instruction_for(agent, domain, {name: f"[what {name} writes]" for name in agent.sees})


def describe_media(path: Path, modality: Modality, settings: Settings) -> str:
    """The media in words, with what it costs. Raises UserError for what such a domain cannot be shown."""
    describe = _describe_picture if modality is Modality.IMAGE else _describe_video
    try:
        check_file(str(path), settings.max_media_mib * 2**20)
        return describe(path, settings)
    except SampleError as error:
        raise UserError(f"{error} Name a {_NOUNS[modality]} that can be read.") from error


_NOUNS = {Modality.IMAGE: "picture", Modality.VIDEO: "video"}


def _describe_picture(path: Path, settings: Settings) -> str:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unrecognised(str(path), "picture") from error
    pixels = min(max(width * height, settings.min_pixels), settings.max_pixels)
    return f"<picture {path.name}, {width} x {height}: about {pixels // _TOKEN_PIXELS:,} tokens>"


def _describe_video(path: Path, settings: Settings) -> str:
    try:
        with av.open(str(path)) as container:
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise MediaUnsupported(f"{path} is a picture.")
            stream = container.streams.video[0]
            size, seconds = f"{stream.width} x {stream.height}", (container.duration or 0) / 1e6
    except (av.FFmpegError, IndexError) as error:
        raise unrecognised(str(path), "video") from error
    most = settings.video_total_pixels // _TOKEN_PIXELS
    return f"<video {path.name}, {size}, {seconds:.1f} s: at most {most:,} tokens>"
