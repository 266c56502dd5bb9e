"""The largest request that the workflows send, and the context that it needs. Imports no vLLM."""

import json
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from capflow_tasks.domains.catalogue import Agent, Domain, load_catalogue
from capflow_tasks.media.budget import budget_of
from capflow_tasks.settings import Settings

#: Pixels of the smallest token that a model has: Qwen2.5-VL's, 28 x 28.
_TOKEN_PIXELS = 28**2
#: Characters of an instruction that make a token, at the least.
_TOKEN_CHARACTERS = 3
#: The least context; a longer one is this, doubled until it suffices.
_CONTEXT_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Demand:
    """The largest request that the workflows send."""

    pictures: int
    videos: int
    #: Of the largest picture.
    picture_pixels: int
    #: Of the largest video or window, two frames counted as one.
    video_pixels: int
    #: Of the longest prompt besides its media (instruction and all reports), with its answer.
    text_tokens: int

    @property
    def context_tokens(self) -> int:
        """The context that holds such a request and its answer, for any model."""
        pixels = max(self.pictures * self.picture_pixels, self.videos * self.video_pixels)
        wanted, context = tokens(pixels) + self.text_tokens, _CONTEXT_TOKENS
        while context < wanted:
            context *= 2
        return context

    @property
    def media_limits(self) -> dict[str, dict[str, int]]:
        """VLLM's `limit_mm_per_prompt`, with the sizes for which it sets memory aside.

        Without sizes, it does so for the largest video of the model's processor: 114,688 tokens, 12 to 14 GB.
        Two frames are the least that each family takes, so they stand for all frames.
        """
        picture, frame = _side(self.picture_pixels), _side(self.video_pixels)
        return {
            "image": {"count": self.pictures, "width": picture, "height": picture},
            "video": {"count": self.videos, "num_frames": 2, "width": frame, "height": frame},
        }


def tokens(pixels: int) -> int:
    """Return the most tokens that a model makes of so many pixels."""
    return -(-pixels // _TOKEN_PIXELS)


def _side(pixels: int) -> int:
    # 5 % more: sides are rounded to whole tokens, up or down
    return isqrt(pixels) * 105 // 100


def demand_of(settings: Settings) -> Demand:
    """Return the largest request of all domains with these settings. Raises WorkflowError."""
    domains = load_catalogue(settings.domains, settings.language).domains
    usual = budget_of(settings)
    budgets = [usual, *(usual.overridden_by(agent.budget) for each in domains for agent in each.agents)]
    return Demand(
        settings.max_images,
        settings.max_videos,
        max(budget.max_pixels for budget in budgets),
        max(budget.total_pixels for budget in budgets),
        max(_text_tokens(agent, domain) for domain in domains for agent in domain.agents),
    )


def _text_tokens(agent: Agent, domain: Domain) -> int:
    """Return the most tokens of an agent's instruction, the answers that it reads, and its own answer."""
    read = [other.sampling for other in domain.agents if other.name in agent.sees]
    own = agent.sampling.max_tokens + agent.sampling.thinking_tokens
    return len(agent.prompt) // _TOKEN_CHARACTERS + sum(each.max_tokens for each in read) + own


def context_of(settings: Settings, config: dict[str, Any]) -> int:
    """Return vLLM's `max_model_len`: as set, else what the workflows need and the model has; -1 for auto."""
    if settings.max_model_len is not None:
        return -1 if settings.max_model_len == "auto" else settings.max_model_len
    trained = text_config(config).get("max_position_embeddings")
    wanted = demand_of(settings).context_tokens
    return min(wanted, trained) if isinstance(trained, int) else wanted


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a config.json."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def config_path(model: str, *, may_download: bool = False) -> Path | None:
    """Return the config.json of a folder or hub name; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if Path(model).is_dir():
        return Path(model, "config.json")
    try:
        return Path(hf_hub_download(model, "config.json", local_files_only=not may_download))
    except (OSError, ValueError, HfHubHTTPError):
        return None


def read_config(model: str, *, may_download: bool = False) -> dict[str, Any]:
    """Return what a model's config.json says; nothing where it cannot be read."""
    path = config_path(model, may_download=may_download)
    try:
        config = json.loads(path.read_text()) if path else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
