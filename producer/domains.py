"""Find every fault in a user's domain files, and render the prompts of a domain for a given sample."""

from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

from capflow_tasks.domains.catalogue import Agent, Catalogue, Domain, load_catalogue
from capflow_tasks.domains.prompts import instruction_for, router_instruction
from capflow_tasks.errors import MediaUnsupported, SampleError, UserError, WorkflowError
from capflow_tasks.media.paths import check_file, unrecognised
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.settings import Settings

#: Pixels per token of Qwen2.5-VL.
_TOKEN_PIXELS = 28 * 28


def folder_faults(folder: Path) -> list[str]:
    """List all faults of the folder's files, one line each: file, key, fault, remedy."""
    if not any(folder.glob("*.yaml")):
        return [f"{folder}: holds no domain file; name a folder with at least one *.yaml"]
    try:
        load_catalogue(folder)
    except WorkflowError as error:
        return str(error).splitlines()
    return []


def render(catalogue: Catalogue, domain: Domain, media: str) -> Iterator[tuple[Agent, JsonObject]]:
    """Yield each agent that a sample of the domain meets, and its call in the order in which it is read.

    Placeholders stand for the answers of earlier agents; `media` is None where the agent does not get it.
    """
    router = (catalogue.router,) if domain.modality is Modality.IMAGE else ()
    for agent in (*router, *domain.agents):
        if agent.tool:
            continue
        if agent is catalogue.router:
            instruction = router_instruction(catalogue)
        else:
            answers = {name: f"[what {name} writes]" for name in agent.sees}
            instruction = instruction_for(agent, domain, answers)
        yield (
            agent,
            {
                "agent": agent.name,
                "stage": agent.stage.value,
                "system": catalogue.system,
                "media": media if agent.media else None,
                "instruction": instruction,
            },
        )


def describe_media(path: Path, modality: Modality, settings: Settings) -> str:
    """Describe the media file and its cost in tokens. Raises UserError when the domain cannot take it."""
    noun = "picture" if modality is Modality.IMAGE else "video"
    try:
        check_file(str(path), settings.max_media_mib * 2**20)
        cost = (_describe_picture if noun == "picture" else _describe_video)(path, settings)
        return f"<{noun} {path.name}, {cost} tokens>"
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
