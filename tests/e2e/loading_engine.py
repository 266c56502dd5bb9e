"""A scripted engine that reads the media of its requests as the real one does, and notes what it got."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from capflow_tasks.engine.demand import context_of
from capflow_tasks.engine.interface import Answer
from capflow_tasks.errors import SampleError
from capflow_tasks.media.loader import MediaLoader, Room
from capflow_tasks.records import Request
from capflow_tasks.settings import Settings
from capflow_tasks.testing import ScriptedEngine

#: File that gets one JSON line per video that was read.
LOADED = "TEST_LOADED_MEDIA"


class LoadingEngine(ScriptedEngine):
    """Answers once the media lie decoded; a file that cannot be read fails its request."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._loader = MediaLoader(settings)
        self._room = Room(context_of(settings, {}), text=0, answer=0)
        self._turn = Lock()
        self._loop = asyncio.new_event_loop()

    def stop(self) -> None:
        self._loop.close()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        with self._turn:
            return [self._answer_one(request) for request in requests]

    def _answer_one(self, request: Request) -> Answer:
        try:
            loaded = self._loop.run_until_complete(self._loader.load(request, self._room))
        except SampleError as error:
            return error
        with Path(os.environ[LOADED]).open("a") as file:
            for ref, each in zip(request.media, loaded, strict=True):
                shape = each.value[0].shape if ref.kind == "video" else (1,)
                line = {
                    "name": Path(ref.path).name,
                    "span": str(ref.span or ""),
                    "shape": shape,
                    "tokens": each.tokens,
                    "key": each.key,
                }
                file.write(json.dumps(line) + "\n")
        return super().generate([request])[0]


def build(settings: Settings, model: str) -> LoadingEngine:
    """The engine that `CAPFLOW_ENGINE=tests.e2e.loading_engine:build` names."""
    return LoadingEngine(settings)
