"""Loads the pictures and videos of requests for the engine: fits, decodes and caches them.

Runs on the engine's event loop; threads read pictures, child processes read videos.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from capflow_tasks.errors import PromptTooLong, RequestRefused
from capflow_tasks.media import decoders, pictures, player, video
from capflow_tasks.media.budget import MediaBudget, MediaForm, budget_of
from capflow_tasks.observe import metrics
from capflow_tasks.records import MediaRef, Modality, Request
from capflow_tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Media:
    """One picture or video, ready for the engine."""

    kind: Modality
    #: Tokens in the prompt.
    tokens: int
    #: The item for vLLM's `multi_modal_data`; None when the engine already has it.
    value: Any
    #: Bytes of decoded pixels.
    nbytes: int = 0
    #: Equal only for the same pixels.
    key: str = ""


def load_media(
    ref: MediaRef, budget: MediaBudget, reader: video.VideoReader = player, key: str = ""
) -> Media:
    """Decode and resize a picture or video."""
    with metrics.MEDIA_SECONDS.labels(ref.kind).time():
        if ref.kind is Modality.IMAGE:
            image = pictures.load_image(ref.path, budget)
            tokens = pictures.count_tokens(image.size, budget)
            return Media(ref.kind, tokens, image, 3 * image.width * image.height, key)
        clip = video.load_video(ref.path, budget, ref.span, reader)
        count, height, width, _ = clip.frames.shape
        tokens = pictures.count_tokens((width, height), budget, count)
        return Media(ref.kind, tokens, clip.for_vllm(), clip.frames.nbytes, key)


#: Loads one medium: its reference, budget, reader of videos and key.
LoadMedia = Callable[[MediaRef, MediaBudget, video.VideoReader, str], Media]


class MediaCache:
    """Least-recently-used cache with a limit in bytes. Concurrent requests for a key share one load."""

    def __init__(self, executor: Executor, max_bytes: int) -> None:
        self._executor = executor
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._futures: OrderedDict[Hashable, Future[Media]] = OrderedDict()
        #: Bytes of the media that are loaded, by key.
        self._sizes: dict[Hashable, int] = {}

    def load(self, key: Hashable, loader: Callable[[], Media]) -> Future[Media]:
        """Return the media of this key; the executor loads them unless they are cached or being loaded."""
        with self._lock:
            if (known := self._futures.get(key)) is not None:
                self._futures.move_to_end(key)
                return known
            future = self._futures[key] = self._executor.submit(loader)
        future.add_done_callback(partial(self._settle, key))
        return future

    def _settle(self, key: Hashable, future: Future[Media]) -> None:
        with self._lock:
            if future.cancelled() or future.exception():
                # failures are not cached: the next read of the file may succeed
                self._futures.pop(key, None)
                return
            self._sizes[key] = future.result().nbytes
            while sum(self._sizes.values()) > self._max_bytes:
                oldest = next(key for key in self._futures if key in self._sizes)
                del self._futures[oldest], self._sizes[oldest]


class SentMedia(OrderedDict[str, int]):
    """Keys of the media that the engine has used, with the tokens of each; the latest 100,000."""

    def tokens(self, key: str) -> int | None:
        """Return the tokens of media that need not be sent again, else None."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def add(self, media: Iterable[Media]) -> None:
        self.update((each.key, each.tokens) for each in media)
        while len(self) > 100_000:
            self.popitem(last=False)

    def forget(self, media: Iterable[Media]) -> None:
        for each in media:
            self.pop(each.key, None)


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens that a prompt leaves for its videos."""

    #: Maximum tokens of prompt and answer.
    model: int
    #: Tokens of the prompt's text.
    text: int
    #: Maximum tokens of the answer.
    answer: int


class MediaLoader:
    """Loads the media of requests in a model's form. Concurrent calls for the same media share one load."""

    def __init__(
        self,
        settings: Settings,
        videos: video.VideoReader | None = None,
        load: LoadMedia = load_media,
        form: MediaForm = MediaForm(),  # noqa: B008 (frozen)
    ) -> None:
        self._load_media = load
        self._threads = ThreadPoolExecutor(settings.media_threads, thread_name_prefix="media")
        self._cache = MediaCache(self._threads, settings.media_cache_mib * 2**20)
        self._budget, self._form = budget_of(settings), form
        self._max_images = settings.max_images
        self._videos = videos or decoders.shared_video_files(settings.video_decoders)
        self._in_flight = asyncio.Semaphore(settings.videos_in_flight)

    def turn(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Limit how many requests with a video hold decoded frames at a time."""
        has_video = any(ref.kind is Modality.VIDEO for ref in request.media)
        return self._in_flight if has_video else nullcontext()

    async def load(self, request: Request, room: Room | None, sent: SentMedia | None = None) -> list[Media]:
        """Return the request's media in order; videos shrink to what `room` leaves after the pictures.

        Media in `sent` are not read: their value is None. Raises PromptTooLong and other SampleErrors.
        """
        budget = self._budget.overridden_by(request.budget).for_model(self._form)
        images = [ref for ref in request.media if ref.kind is Modality.IMAGE]
        videos = [ref for ref in request.media if ref.kind is Modality.VIDEO]
        if len(images) > self._max_images:
            raise RequestRefused(
                f"the sample has {len(images)} pictures; the limit is {self._max_images}: start the workers "
                f"with CAPFLOW_MAX_IMAGES={len(images)}, then `capflow retry --kind request_refused`"
            )
        loaded = {ref: await self._load(ref, budget, sent) for ref in images}
        taken = sum(each.tokens for each in loaded.values())
        for ref in videos:
            fitted = budget
            if room is not None:
                share = (room.model - room.text - room.answer - taken) // len(videos)
                loop = asyncio.get_running_loop()
                fitted = await loop.run_in_executor(self._threads, self._fit, ref, budget, room, share)
            loaded[ref] = await self._load(ref, fitted, sent)
        return [loaded[ref] for ref in request.media]

    async def _load(self, ref: MediaRef, budget: MediaBudget, sent: SentMedia | None) -> Media:
        # Not in the threads that decode, where a key would wait for pictures.
        key = await asyncio.to_thread(pictures.media_key, ref.path, budget, ref.span)
        if sent is not None and (tokens := sent.tokens(key)) is not None:
            return Media(ref.kind, tokens, None, key=key)
        future = self._cache.load(key, partial(self._load_media, ref, budget, self._videos, key))
        # shielded: a request that times out must not cancel the load for the others
        return await asyncio.shield(asyncio.wrap_future(future))

    def _fit(self, ref: MediaRef, budget: MediaBudget, room: Room, share: int) -> MediaBudget:
        """Return a budget, reduced if necessary, with which the video takes at most `share` tokens."""
        facts = self._videos.measure(ref.path, budget)
        if video.plan_frames(facts, budget, ref.span).tokens <= share:
            return budget
        if share >= budget.video_min_tokens:
            fitted = budget.within(share)
            if video.plan_frames(facts, fitted, ref.span).tokens <= share:
                return fitted
        raise PromptTooLong(
            f"the prompt's text takes {room.text:,} tokens and its answer up to {room.answer:,}: of the "
            f"model's {room.model:,} that leaves {max(share, 0):,} for {ref.path}, which needs at least "
            f"{budget.video_min_tokens:,}"
        )
