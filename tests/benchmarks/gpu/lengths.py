"""Domain files whose agents all write as much as is common, so that every run does the same work.

Our own files with other `max_tokens`. Random weights end a text with about one token in 150,000, so each
answer is as long as it may be; the engine is not told to ignore the end. A judge's answer ends with its JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import yaml

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.records import JsonObject, Stage

#: Tokens of an answer, by stage.
TOKENS = {Stage.PERCEIVE: 256, Stage.REASON: 256, Stage.SUMMARIZE: 512}


def write_domains(folder: Path, tokens: Mapping[Stage, int]) -> None:
    """Copies of the packaged domain files in which every text has this many tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    agents = [agent for domain in load_catalogue().domains for agent in domain.agents]
    limits = {agent.name: tokens[agent.stage] for agent in agents if agent.answer == "text"}
    packaged = (files("capflow_tasks") / "domains").iterdir()
    for file in (each for each in packaged if each.name.endswith(".yaml")):
        content = yaml.safe_load(file.read_text("utf-8"))
        content["agents"] = {
            name: _limited(keys, limits.get(name)) for name, keys in content["agents"].items()
        }
        (folder / file.name).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _limited(keys: JsonObject | None, tokens: int | None) -> JsonObject | None:
    if tokens is None:
        return keys
    found = keys or {}
    return found | {"sampling": found.get("sampling", {}) | {"max_tokens": tokens}}
