"""A request's media on their way into the engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import pytest

from capflow_tasks.errors import MediaCorrupt, PromptTooLong, RequestRefused
from capflow_tasks.media.decoders import VideoFiles
from capflow_tasks.media.loader import Media, MediaCache, MediaLoader, Room, SentMedia
from capflow_tasks.records import MediaRef, Modality, Request, Sampling, Span
from capflow_tasks.settings import Settings
from tests.datasets import draw_picture, film_video

SETTINGS = Settings(media_threads=1, videos_in_flight=2)
ROOMY = Room(model=32_768, text=500, answer=512)


@pytest.fixture(scope="module")
def decoders() -> Iterator[VideoFiles]:
    decoders = VideoFiles(1)
    yield decoders
    decoders.stop()


@pytest.fixture
def loader(decoders: VideoFiles) -> MediaLoader:
    return MediaLoader(SETTINGS, decoders)


@pytest.fixture
def film(tmp_path: Path) -> MediaRef:
    film_video(tmp_path / "film.mp4", seconds=8)
    return MediaRef(Modality.VIDEO, str(tmp_path / "film.mp4"))


@pytest.fixture
def picture(tmp_path: Path) -> MediaRef:
    draw_picture(tmp_path / "0.png", 0)
    return MediaRef(Modality.IMAGE, str(tmp_path / "0.png"))


def request(*media: MediaRef, **budget: float) -> Request:
    return Request("", media, "", Sampling(8), budget=budget)


def load(loader: MediaLoader, asked: Request, room: Room | None = ROOMY) -> list[Media]:
    return asyncio.run(loader.load(asked, room))


def test_a_video_is_decoded_in_a_child_and_given_with_its_times(loader: MediaLoader, film: MediaRef) -> None:
    (loaded,) = load(loader, request(film))
    frames, metadata = loaded.value
    assert (len(frames), metadata["duration"]) == (16, 8.0)
    assert frames.flags.writeable
    (again,) = load(loader, request(film))
    assert again.value[0] is frames


def test_pictures_and_videos_keep_their_order(loader: MediaLoader, film: MediaRef, picture: MediaRef) -> None:
    loaded = load(loader, request(film, picture))
    assert [each.kind for each in loaded] == [Modality.VIDEO, Modality.IMAGE]


def test_a_window_is_another_clip_with_another_key(loader: MediaLoader, film: MediaRef) -> None:
    windows = [MediaRef(film.kind, film.path, Span(start, start + 4)) for start in (0.0, 4.0)]
    (whole,), (first,), (second,) = (load(loader, request(ref)) for ref in (film, *windows))
    assert len({whole.key, first.key, second.key}) == 3
    assert [len(each.value[0]) for each in (whole, first, second)] == [16, 8, 8]
    assert second.value[1]["duration"] == 4.0
    assert (second.value[0] != first.value[0]).any()


def test_what_a_domain_asks_for_wins_over_the_settings(loader: MediaLoader, film: MediaRef) -> None:
    (plain,) = load(loader, request(film))
    (fewer,) = load(loader, request(film, fps=1, total_pixels=1024 * 784))
    assert fewer.key != plain.key
    assert len(fewer.value[0]) == 8
    assert fewer.tokens <= 1024


@pytest.mark.parametrize("left", [160, 400, 1000])
def test_a_video_gets_no_more_than_the_prompt_leaves(loader: MediaLoader, film: MediaRef, left: int) -> None:
    (whole,) = load(loader, request(film))
    assert whole.tokens > left
    (cut,) = load(loader, request(film), Room(model=4096, text=4096 - 512 - left, answer=512))
    assert 0 < cut.tokens <= left


def test_a_slow_file_system_holds_up_no_other_request(
    loader: MediaLoader, picture: MediaRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[str] = []
    stat = os.stat

    def noted(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if path == Path(picture.path) and current_thread() is main_thread():
            on_loop.append(path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", noted)
    load(loader, request(picture))
    assert on_loop == []


def test_what_the_engine_has_is_named_and_not_read_again(
    loader: MediaLoader, film: MediaRef, picture: MediaRef
) -> None:
    sent = SentMedia()
    first = load(loader, request(picture))
    sent.add(first)

    again = asyncio.run(loader.load(request(film, picture), ROOMY, sent))
    assert [each.value is None for each in again] == [False, True]
    assert (again[1].key, again[1].tokens) == (first[0].key, first[0].tokens)

    sent.forget(again)
    (resent,) = asyncio.run(loader.load(request(picture), ROOMY, sent))
    assert resent.value is not None


def test_pictures_beside_a_video_are_counted(loader: MediaLoader, film: MediaRef, picture: MediaRef) -> None:
    room = Room(model=2048, text=500, answer=512)
    loaded = load(loader, request(film, picture), room)
    assert sum(each.tokens for each in loaded) <= room.model - room.text - room.answer


def test_a_prompt_that_leaves_no_room_says_so_in_numbers(loader: MediaLoader, film: MediaRef) -> None:
    with pytest.raises(PromptTooLong) as caught:
        load(loader, request(film), Room(model=4096, text=3500, answer=512))
    numbers = ["3,500 tokens", "answer up to 512", "model's 4,096", "leaves 84 for", "at least 160"]
    assert all(number in str(caught.value) for number in numbers)
    with pytest.raises(PromptTooLong, match="leaves 0 for"):
        load(loader, request(film), Room(model=4096, text=9000, answer=512))


def test_a_damaged_video_says_why(loader: MediaLoader, film: MediaRef) -> None:
    path = Path(film.path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(MediaCorrupt, match="damaged or cut short"):
        load(loader, request(film))


def test_few_videos_lie_decoded_at_a_time_and_pictures_never_wait(
    loader: MediaLoader, film: MediaRef, picture: MediaRef
) -> None:
    async def count() -> list[int]:
        inside, most = 0, [0]

        async def hold() -> None:
            nonlocal inside
            async with loader.turn(request(film)):
                inside += 1
                most.append(inside)
                await asyncio.sleep(0)
                async with loader.turn(request(picture)):
                    pass
                inside -= 1

        await asyncio.gather(*(hold() for _ in range(8)))
        return most

    assert max(asyncio.run(count())) == 2


class CrashingCodec(VideoFiles):
    """Its codec does not survive a file named bad."""

    def play(self, path: str, *arguments: Any) -> Any:
        if Path(path).name == "bad.mp4":
            return self.run(path, 100, signal.raise_signal, signal.SIGSEGV)
        return super().play(path, *arguments)


def test_a_codec_that_crashes_fails_its_own_video_and_no_other(film: MediaRef, picture: MediaRef) -> None:
    bad = MediaRef(film.kind, film.path.replace("film.mp4", "bad.mp4"))
    shutil.copy(film.path, bad.path)
    decoders = CrashingCodec(2)
    loader = MediaLoader(SETTINGS, decoders)

    async def load_all() -> list[Any]:
        asked = [request(ref) for ref in (bad, film, picture, bad)]
        return await asyncio.gather(*(loader.load(each, ROOMY) for each in asked), return_exceptions=True)

    first, second, third, fourth = asyncio.run(load_all())
    decoders.stop()
    assert [type(first), type(fourth)] == [MediaCorrupt] * 2
    assert "bad.mp4 crashed the decoder (SIGSEGV)" in str(first)
    assert [len(each) for each in (second, third)] == [1, 1]


BYTES = 10


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def pixels_of(key: str) -> Media:
    return Media(Modality.IMAGE, 1, f"pixels of {key}", nbytes=BYTES, key=key)


class Loads:
    """Counts how often each key was loaded."""

    def __init__(self, cache: MediaCache) -> None:
        self.cache = cache
        self.keys: list[str] = []

    def __call__(self, key: str) -> str:
        def load() -> Media:
            self.keys.append(key)
            return pixels_of(key)

        value: str = self.cache.load(key, load).result(5).value
        return value


def a_cache(threads: ThreadPoolExecutor, room_for: int) -> Loads:
    return Loads(MediaCache(threads, room_for * BYTES))


def settle(threads: ThreadPoolExecutor) -> None:
    """Callbacks run behind the value; one more round through every thread is behind them."""
    wait([threads.submit(int) for _ in range(8)])


def test_what_was_loaded_is_not_loaded_again(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=2)

    assert [load("a"), load("a"), load("b")] == ["pixels of a", "pixels of a", "pixels of b"]
    assert load.keys == ["a", "b"]


def test_the_least_recently_used_goes_first_when_room_is_short(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=2)
    for key in ("a", "b", "a", "c"):
        load(key)
        settle(threads)

    assert (load("a"), load.keys) == ("pixels of a", ["a", "b", "c"])
    assert (load("b"), load.keys) == ("pixels of b", ["a", "b", "c", "b"])


def test_without_room_nothing_is_kept_and_all_is_given(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=0)

    for _ in range(3):
        assert load("a") == "pixels of a"
        settle(threads)
    assert load.keys == ["a", "a", "a"]


def test_those_who_ask_at_once_share_one_load(threads: ThreadPoolExecutor) -> None:
    cache = MediaCache(threads, BYTES)
    may_load = Event()
    loads = []

    def load() -> Media:
        assert may_load.wait(5)
        loads.append(1)
        return pixels_of("a")

    futures = [cache.load("a", load) for _ in range(10)]
    may_load.set()

    assert {future.result(5).value for future in futures} == {"pixels of a"}
    assert len(loads) == 1


def test_a_failure_reaches_those_who_wait_and_is_not_cached(threads: ThreadPoolExecutor) -> None:
    load = a_cache(threads, room_for=2)

    def fail() -> Media:
        raise OSError("the disk is away")

    with pytest.raises(OSError, match="away"):
        load.cache.load("a", fail).result(5)
    settle(threads)

    assert load("a") == "pixels of a"


def test_a_sample_with_too_many_pictures_names_the_setting_that_helps(
    tmp_path: Path, decoders: VideoFiles
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        draw_picture(path, number)
    asked = request(*(MediaRef(Modality.IMAGE, str(path)) for path in paths))
    with pytest.raises(RequestRefused, match=r"5 pictures; the limit is 4: .* CAPFLOW_MAX_IMAGES=5"):
        load(MediaLoader(SETTINGS, decoders), asked)
    assert len(load(MediaLoader(SETTINGS.model_copy(update={"max_images": 5}), decoders), asked)) == 5
