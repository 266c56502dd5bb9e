"""A request's pictures and videos on their way into the engine: fitted, decoded, and kept for the next call.

Knows nothing of vLLM. Runs on the engine's event loop; files are read in threads, videos in processes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar

from capflow_tasks.errors import PromptTooLong
from capflow_tasks.media.budget import budget_of
from capflow_tasks.media.decoders import shared_video_files
from capflow_tasks.media.pictures import MediaBudget, image_tokens, load_image, media_key, video_tokens
from capflow_tasks.media.video import VideoReader, here, load_video, plan_frames
from capflow_tasks.observe import metrics
from capflow_tasks.records import MediaRef, Modality, Request
from capflow_tasks.settings import Settings

T = TypeVar("T")


class MediaCache(Generic[T]):
    """Least recently used first out, bounded in bytes. Callers that ask at once share one load."""

    def __init__(self, executor: Executor, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self._executor = executor
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._lock = Lock()
        self._futures: OrderedDict[Hashable, Future[T]] = OrderedDict()
        #: Bytes of what is here, by key.
        self._sizes: dict[Hashable, int] = {}

    def load(self, key: Hashable, loader: Callable[[], T]) -> Future[T]:
        """The value for this key, loaded in the executor unless it is here or on its way."""
        with self._lock:
            if (known := self._futures.get(key)) is not None:
                self._futures.move_to_end(key)
                return known
            future = self._futures[key] = self._executor.submit(loader)
        future.add_done_callback(lambda done: self._settle(key, done))
        return future

    def _settle(self, key: Hashable, future: Future[T]) -> None:
        with self._lock:
            if future.cancelled() or future.exception():
                # A failure is not kept: the file may be readable the next time.
                self._futures.pop(key, None)
                return
            self._sizes[key] = self._size_of(future.result())
            while sum(self._sizes.values()) > self._max_bytes:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        """What is still being loaded has no size yet, and stays."""
        oldest = next(key for key in self._futures if key in self._sizes)
        del self._futures[oldest], self._sizes[oldest]


@dataclass(frozen=True, slots=True)
class Media:
    """One picture or video as vLLM takes it."""

    #: An item for `multi_modal_data`.
    value: Any
    #: Bytes of decoded pixels.
    nbytes: int
    #: Tokens that it costs in the prompt.
    tokens: int


def load_media(ref: MediaRef, budget: MediaBudget, videos: VideoReader | None = None) -> Media:
    """Return the picture or video, decoded and sized; videos are read by `videos`, or in this process."""
    if ref.kind is Modality.IMAGE:
        image = load_image(ref.path, budget)
        return Media(image, 3 * image.width * image.height, image_tokens(*image.size, budget))
    video = load_video(ref.path, budget, ref.span, videos or here)
    count, height, width, _ = video.frames.shape
    return Media(video.for_vllm(), video.frames.nbytes, video_tokens(width, height, count, budget))


@dataclass(frozen=True, slots=True)
class Room:
    """What a prompt leaves for its media, in tokens."""

    #: The longest prompt and answer that the model takes.
    model: int
    #: The prompt's text.
    text: int
    #: The longest answer.
    answer: int

    @property
    def left(self) -> int:
        return self.model - self.text - self.answer


@dataclass(frozen=True, slots=True)
class LoadedMedia:
    """One picture or video, ready for the engine."""

    kind: Modality
    #: Equal only for the same pixels.
    key: str
    #: What it costs in the prompt.
    tokens: int
    #: What vLLM takes; None for what the engine has already.
    value: Any


class MediaLoader:
    """Loads what requests refer to. Calls that ask for the same at once share one load."""

    def __init__(self, settings: Settings) -> None:
        self._threads = ThreadPoolExecutor(settings.media_threads, thread_name_prefix="media")
        self._cache: MediaCache[Media] = MediaCache(
            self._threads, settings.media_cache_mib * 2**20, size_of=lambda media: media.nbytes
        )
        self._budget = budget_of(settings)
        self._videos: VideoReader = shared_video_files(settings.video_decoders)
        self._in_flight = asyncio.Semaphore(settings.videos_in_flight)

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """Wait until the request may hold its video: however many there are, few lie decoded at a time."""
        if any(ref.kind is Modality.VIDEO for ref in request.media):
            async with self._in_flight:
                yield
        else:
            yield

    async def load(
        self, request: Request, room: Room | None, sent: Callable[[str], int | None] = lambda key: None
    ) -> list[LoadedMedia]:
        """Return the request's media in order; videos get no more than `room` leaves beside the pictures.

        `sent` tells, by key, the tokens of what the engine has already: that is not read again.
        """
        budget = self._budget.limited(request.limits)
        pictures = [ref for ref in request.media if ref.kind is Modality.IMAGE]
        loaded = {ref: await self._load(ref, budget, sent) for ref in pictures}
        videos = [ref for ref in request.media if ref.kind is Modality.VIDEO]
        taken = sum(each.tokens for each in loaded.values())
        for ref in videos:
            fitted = budget
            if room is not None:
                share = (room.left - taken) // len(videos)
                fit = partial(fit_clip, ref, budget, self._videos, room, share)
                fitted = await asyncio.wrap_future(self._threads.submit(fit))
            loaded[ref] = await self._load(ref, fitted, sent)
        return [loaded[ref] for ref in request.media]

    async def _load(
        self, ref: MediaRef, budget: MediaBudget, sent: Callable[[str], int | None]
    ) -> LoadedMedia:
        key = media_key(ref.path, budget, ref.span)
        if (tokens := sent(key)) is not None:
            return LoadedMedia(ref.kind, key, tokens, None)
        future = self._cache.load(key, partial(_timed_load, ref, budget, self._videos))
        # Shielded: a caller that runs out of time must not cancel the load for the others.
        media = await asyncio.shield(asyncio.wrap_future(future))
        return LoadedMedia(ref.kind, key, media.tokens, media.value)


def _timed_load(ref: MediaRef, budget: MediaBudget, reader: VideoReader) -> Media:
    with metrics.MEDIA_SECONDS.labels(ref.kind).time():
        return load_media(ref, budget, reader)


def fit_clip(ref: MediaRef, budget: MediaBudget, reader: VideoReader, room: Room, share: int) -> MediaBudget:
    """Return the budget, cut down where the clip would cost more than `share` tokens; or PromptTooLong."""
    facts = reader.measure(ref.path, budget)
    if plan_frames(facts, budget, ref.span).tokens <= share:
        return budget
    if share >= budget.video_min_tokens:
        fitted = budget.within(share)
        if plan_frames(facts, fitted, ref.span).tokens <= share:
            return fitted
    raise PromptTooLong(
        f"the prompt's text takes {room.text:,} tokens and its answer up to {room.answer:,}: of the model's "
        f"{room.model:,} that leaves {max(share, 0):,} for {ref.path}, which needs at least "
        f"{budget.video_min_tokens:,}"
    )
