"""Find every fault in a user's domain files, and render the prompts of a domain for a given sample."""

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

#: Pixels per token of Qwen2.5-VL.
_TOKEN_PIXELS = 28 * 28


def folder_faults(folder: Path) -> list[str]:
    """List all faults of the folder's files, one line each: file, key, fault, remedy."""
    names = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
    faults: list[str] = []
    theirs: dict[str, JsonObject] = {}
    if not names:
        faults.append(f"{folder}: holds no domain file; name a folder with at least one *.yaml")
    for name in names:
        try:
            theirs[name] = read_file(folder / name)
        except WorkflowError as error:
            faults += str(error).splitlines()
    ours = read_folder(files("capflow_tasks") / "domains")
    defaults = merged_defaults(ours.pop(DEFAULTS), theirs.pop(DEFAULTS, {"agents": {}}))
    sources = (ours | theirs).values()
    faults += domain_faults(sources)
    for keys in sources:
        faults += list(_agents_faults(keys, defaults)) or _faults_of(partial(make_domain, keys, defaults))
    return faults or _faults_of(partial(load_catalogue, folder))


def _agents_faults(keys: JsonObject, defaults: JsonObject) -> Iterator[str]:
    """Yield the faults of all of a domain's agents, while `make_domain` raises at the first agent's."""
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


@dataclass(frozen=True, slots=True)
class Prompt:
    """One model call, in the order in which the model reads it."""

    agent: Agent
    system: str
    #: A description of the picture or video; None when the agent does not get it.
    media: str | None
    instruction: str


def render(catalogue: Catalogue, domain: Domain, media: str) -> Iterator[Prompt]:
    """Yield every call for a sample of the domain, with placeholders for the answers of earlier agents."""
    router = (catalogue.router,) if domain.modality is Modality.IMAGE else ()
    for agent in (*router, *domain.agents):
        if agent is catalogue.router:
            instruction = router_instruction(catalogue)
        else:
            answers = {name: f"[what {name} writes]" for name in agent.sees}
            instruction = instruction_for(agent, domain, answers)
        yield Prompt(agent, catalogue.system, media if agent.media else None, instruction)


def describe_media(path: Path, modality: Modality, settings: Settings) -> str:
    """Describe the media file and its cost in tokens. Raises UserError when the domain cannot take it."""
    noun, describe = {
        Modality.IMAGE: ("picture", _describe_picture),
        Modality.VIDEO: ("video", _describe_video),
    }[modality]
    try:
        check_file(str(path), settings.max_media_mib * 2**20)
        return f"<{noun} {path.name}, {describe(path, settings)} tokens>"
    except SampleError as error:
        raise UserError(f"{error} Name a {noun} that can be read.") from error


def _describe_picture(path: Path, settings: Settings) -> str:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unrecognised(str(path), "picture") from error
    pixels = min(max(width * height, settings.min_pixels), settings.max_pixels)
    return f"{width} x {height}: about {pixels // _TOKEN_PIXELS:,}"


def _describe_video(path: Path, settings: Settings) -> str:
    try:
        with av.open(str(path)) as container:
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise MediaUnsupported(f"{path} is a picture.")
            stream = container.streams.video[0]
            size, seconds = f"{stream.width} x {stream.height}", (container.duration or 0) / 1e6
    except (av.FFmpegError, IndexError) as error:
        raise unrecognised(str(path), "video") from error
    return f"{size}, {seconds:.1f} s: at most {settings.video_total_pixels // _TOKEN_PIXELS:,}"
