"""Workflows that give every domain other agents than its file names."""

from collections.abc import Callable

from capflow_tasks.records import JsonObject, Modality, Stage, Workflow

#: The workflow of `capflow eval`: questions about media, and answers from captions alone.
EXAM = "exam"

#: The agent that captions at once, by the domain's modality.
_FAST_CAPTIONERS = {Modality.IMAGE: "fast_caption", Modality.VIDEO: "fast_video_caption"}


def _fast(keys: JsonObject, shared: JsonObject) -> JsonObject:
    """Leave of the domain's agents its judges, without what they see, after one that captions at once."""
    judges = {
        name: own | {"sees": []}
        for name, own in keys["agents"].items()
        if (shared.get(name, {}) | own).get("stage") == Stage.SCORE
    }
    return keys | {"agents": {_FAST_CAPTIONERS[Modality(keys["modality"])]: {}} | judges}


def _exam(keys: JsonObject, shared: JsonObject) -> JsonObject:
    """Replace the domain's agents by one that writes questions and one that answers them from a caption."""
    captioner = _FAST_CAPTIONERS[Modality(keys["modality"])]
    return keys | {"agents": {"question_writer": {}, captioner: {}, "caption_reader": {}}}


#: By workflow: from a domain's keys and the agents of the defaults to the domain's keys.
RESHAPED: dict[str, Callable[[JsonObject, JsonObject], JsonObject]] = {Workflow.FAST: _fast, EXAM: _exam}
