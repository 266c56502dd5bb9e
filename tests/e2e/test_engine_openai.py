"""OpenAiEngine against a real vLLM server on the CPU, through a proxy that misbehaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest

from capflow_tasks.domains.schemas import broken_by, closed
from capflow_tasks.engine.interface import EngineState, build_engine
from capflow_tasks.engine.openai_engine import OpenAiEngine
from capflow_tasks.errors import (
    BadAnswer,
    EngineDead,
    MediaMissing,
    NoProbabilities,
    PromptTooLong,
    RequestFailed,
    RequestRefused,
    RequestTimeout,
    ServiceError,
)
from capflow_tasks.records import Completion, MediaRef, Modality, Request, Sampling
from capflow_tasks.settings import Settings
from tests.conftest import Eventually
from tests.datasets import draw_picture, film_video
from tests.e2e.servers import KEY, SERVED, Fault, Proxy, VllmServer, free_port

pytestmark = pytest.mark.e2e

LETTERS = tuple("ABCDEFGH")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": [1, 2, 3]} for name in ("accuracy", "overall")},
    "required": ["accuracy", "overall"],
    "additionalProperties": False,
}
#: A schema of a user's, as in a domain file.
FORM = closed(
    {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 12},
            "colours": {"type": "array", "maxItems": 2, "items": {"enum": ["red", "blue"]}},
            "place": {"type": "object", "properties": {"is_inside": {"type": "boolean"}}},
        },
    }
)


@pytest.fixture
def proxy(vllm_server: VllmServer) -> Iterator[Proxy]:
    with Proxy(vllm_server.port).serving() as proxy:
        yield proxy


@pytest.fixture
def openai_engine(proxy: Proxy) -> Iterator[OpenAiEngine]:
    engine = start_engine(proxy)
    yield engine
    engine.stop()


def start_engine(proxy: Proxy, model: str = SERVED, **changes: Any) -> OpenAiEngine:
    fields = {"openai_base_url": proxy.url, "openai_api_key": KEY, **changes}
    engine = build_engine(Settings(**fields), model, "openai")
    assert isinstance(engine, OpenAiEngine)
    engine.start()
    return engine


def asked(instruction: str, *media: MediaRef, **changes: object) -> Request:
    fields: dict[str, object] = {"sampling": Sampling(max_tokens=8, temperature=0.0), **changes}
    return Request("You describe pictures.", media, instruction, **fields)  # type: ignore[arg-type]


def completion(answer: object) -> Completion:
    assert isinstance(answer, Completion), answer
    return answer


@pytest.fixture
def picture(tmp_path: Path) -> MediaRef:
    draw_picture(tmp_path / "0.png", 0)
    return MediaRef(Modality.IMAGE, str(tmp_path / "0.png"))


@pytest.fixture
def video(tmp_path: Path) -> MediaRef:
    film_video(tmp_path / "clip.mp4")
    return MediaRef(Modality.VIDEO, str(tmp_path / "clip.mp4"))


def test_answers_come_in_order_with_tokens_and_time(openai_engine: OpenAiEngine, picture: MediaRef) -> None:
    lengths = [asked("Describe it.", picture, sampling=Sampling(max_tokens=count)) for count in range(2, 8)]

    answers = [completion(answer) for answer in openai_engine.generate(lengths)]
    (again,) = map(completion, openai_engine.generate([asked("Where is it?", picture)]))

    assert [answer.completion_tokens for answer in answers] == list(range(2, 8))
    assert all(answer.prompt_tokens > 256 and answer.finish_reason == "length" for answer in answers)
    assert all(answer.text and answer.seconds > 0 for answer in answers)
    assert again.cached_tokens >= 256


def test_a_bad_request_fails_alone(openai_engine: OpenAiEngine, picture: MediaRef, tmp_path: Path) -> None:
    gone = MediaRef(Modality.IMAGE, str(tmp_path / "gone.png"))

    first, missing, long, last = openai_engine.generate(
        [asked("One.", picture), asked("Two.", gone), asked("word " * 20_000, picture), asked("Four.")]
    )

    assert isinstance(missing, MediaMissing)
    assert isinstance(long, PromptTooLong)
    assert completion(first).text
    assert completion(last).text


def test_a_route_is_one_letter_with_a_probability_for_each(
    openai_engine: OpenAiEngine, picture: MediaRef
) -> None:
    request = asked("Choose a letter.", picture, choices=LETTERS, sampling=Sampling(1, temperature=0.0))

    (answer,) = map(completion, openai_engine.generate([request]))

    assert tuple(answer.probabilities) == LETTERS
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert all(0 < probability < 1 for probability in answer.probabilities.values())
    assert answer.text == max(answer.probabilities, key=answer.probabilities.__getitem__)


def test_an_answer_by_schema_can_be_read(openai_engine: OpenAiEngine, picture: MediaRef) -> None:
    request = asked("Grade it.", picture, schema=SCHEMA, sampling=Sampling(max_tokens=64, temperature=1.0))

    for answer in openai_engine.generate([request] * 3):
        assert set(json.loads(completion(answer).text)) == {"accuracy", "overall"}


def test_an_object_by_a_users_schema_comes_without_its_tokens(
    openai_engine: OpenAiEngine, picture: MediaRef
) -> None:
    limit = Sampling(max_tokens=120, temperature=1.0)
    request = asked("Catalogue it.", picture, schema=FORM, wants_tokens=False, sampling=limit)

    (answer,) = map(completion, openai_engine.generate([request]))

    assert broken_by(json.loads(answer.text, strict=False), FORM) is None
    assert answer.tokens == ()
    assert (answer.sampling["max_tokens"], answer.sampling["temperature"]) == (120, 1.0)


def test_a_video_goes_as_pictures_with_their_times_or_as_vllm_takes_it(
    openai_engine: OpenAiEngine, proxy: Proxy, video: MediaRef
) -> None:
    with_video = start_engine(proxy, openai_video="vllm")
    (as_pictures,) = map(completion, openai_engine.generate([asked("What moves?", video)]))
    (as_video,) = map(completion, with_video.generate([asked("What moves?", video)]))
    with_video.stop()

    pictures, whole = proxy.requests
    parts = pictures["messages"][1]["content"]
    assert [part["text"] for part in parts if part["type"] == "text"][:2] == [
        "Frame at 00:00:00:",
        "Frame at 00:00:00.500:",
    ]
    assert sum(part["type"] == "image_url" for part in parts) == 4
    (shown, _) = whole["messages"][1]["content"]
    assert shown["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert whole["media_io_kwargs"]["video"]["frames_indices"] == [0, 4, 8, 12]
    # two frames of a video share their tokens
    assert 1.5 < as_pictures.prompt_tokens / as_video.prompt_tokens < 2.5


def test_no_more_requests_are_in_flight_than_allowed(proxy: Proxy, picture: MediaRef) -> None:
    engine = start_engine(proxy, openai_requests=2)

    assert all(map(completion, engine.generate([asked(f"Question {n}.", picture) for n in range(8)])))
    engine.stop()

    assert proxy.most_at_once == 2


def test_a_busy_server_is_asked_again_when_it_says(openai_engine: OpenAiEngine, proxy: Proxy) -> None:
    soon = formatdate(time() + 2, usegmt=True)
    proxy.faults.extend([Fault(429, retry_after="1"), Fault(503, retry_after=soon), Fault(500)])
    began = monotonic()

    (answer,) = map(completion, openai_engine.generate([asked("Say something.")]))

    assert len(proxy.requests) == 4
    assert monotonic() - began >= 1.5
    assert answer.seconds >= 1.5


def test_a_connection_that_breaks_once_costs_nothing_and_one_that_always_does_ends_the_try(
    openai_engine: OpenAiEngine, proxy: Proxy
) -> None:
    proxy.faults.append(Fault(breaks=True))
    completion(*openai_engine.generate([asked("Say something.")]))

    proxy.poison = ("poison", Fault(breaks=True))
    with pytest.raises(EngineDead, match="broke the connection"):
        openai_engine.generate([asked("Say something."), asked("poison")])


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(500), RequestFailed),
        (Fault(400, message="no such field"), RequestRefused),
        (Fault(400, message="This model's maximum context length is 10 tokens"), PromptTooLong),
        (Fault(413, message="payload"), PromptTooLong),
        (Fault(403, message="flagged"), RequestRefused),
        (Fault(200, body={"choices": None}), RequestFailed),
        (Fault(200, body={"choices": [{"message": {"refusal": "I can't"}}]}), RequestRefused),
    ],
)
def test_what_a_request_is_to_blame_for_fails_it_alone(
    openai_engine: OpenAiEngine, proxy: Proxy, fault: Fault, error: type[Exception]
) -> None:
    proxy.poison = ("poison", fault)

    bad, good = openai_engine.generate([asked("poison"), asked("Say something.")])

    assert isinstance(bad, error)
    completion(good)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(401, message=f"the key {KEY} is wrong"),
        Fault(402),
        Fault(404),
        Fault(429, retry_after="86400"),
        Fault(429, body={"error": {"message": "pay", "code": "insufficient_quota"}}),
    ],
)
def test_what_no_request_is_to_blame_for_is_a_service_error_without_the_key(
    openai_engine: OpenAiEngine, proxy: Proxy, fault: Fault
) -> None:
    proxy.poison = ("poison", fault)

    with pytest.raises(ServiceError, match="CAPFLOW_OPENAI_BASE_URL") as failed:
        openai_engine.generate([asked("poison"), asked("Say something.")])

    assert KEY not in str(failed.value)


def test_a_server_without_probabilities_is_named(openai_engine: OpenAiEngine, proxy: Proxy) -> None:
    choice: dict[str, Any] = {"message": {"content": "A"}, "finish_reason": "stop"}
    proxy.faults.append(Fault(200, body={"choices": [choice]}))
    request = asked("Choose a letter.", choices=LETTERS)

    with pytest.raises(NoProbabilities, match="task"):
        openai_engine.generate([request])

    likely = {"token": " B", "logprob": -0.1, "bytes": None}
    unlikely = {"token": "x", "logprob": -9.0, "bytes": None}
    for top, kind in ([[likely, unlikely], Completion], [[unlikely], BadAnswer]):
        logprobs = {"content": [{**likely, "top_logprobs": top}]}
        proxy.faults.append(Fault(200, body={"choices": [{**choice, "logprobs": logprobs}]}))
        (answer,) = openai_engine.generate([request])
        assert isinstance(answer, kind)  # type: ignore[arg-type]


def test_a_slow_answer_is_late_alone_and_a_silent_server_is_dead(proxy: Proxy) -> None:
    engine = start_engine(proxy, request_timeout_seconds=2)
    proxy.poison = ("slow", Fault(seconds=4))

    slow, quick = engine.generate([asked("slow"), asked("Say something.")])
    assert isinstance(slow, RequestTimeout)
    completion(quick)

    with pytest.raises(EngineDead, match="answered nothing"):
        engine.generate([asked("slow")])
    engine.stop()


def test_fields_can_be_added_and_removed(proxy: Proxy) -> None:
    engine = start_engine(proxy, openai_body={"top_p": None, "max_tokens": None, "max_completion_tokens": 3})

    assert completion(*engine.generate([asked("Say something.")])).completion_tokens == 3
    engine.stop()

    assert proxy.requests[0].keys().isdisjoint({"top_p", "max_tokens"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "other"}, f"set CAPFLOW_MODEL to one of: {SERVED}"),
        ({"openai_api_key": "sk-wrong"}, "401.*set CAPFLOW_OPENAI_API_KEY"),
        ({"openai_base_url": f"http://127.0.0.1:{free_port()}/v1"}, "cannot be reached"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_at_the_start(
    proxy: Proxy, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(ServiceError, match=said):
        start_engine(proxy, **changes)


def test_it_loads_no_torch_even_for_pictures_and_videos(
    proxy: Proxy, picture: MediaRef, video: MediaRef
) -> None:
    script = f"""
import sys
from capflow_tasks.engine.interface import build_engine
from capflow_tasks.records import *
from capflow_tasks.settings import Settings
if __name__ == "__main__":
    settings = Settings(openai_base_url={proxy.url!r}, openai_api_key={KEY!r})
    engine = build_engine(settings, {SERVED!r}, "openai")
    engine.start()
    media = MediaRef(Modality.IMAGE, {picture.path!r}), MediaRef(Modality.VIDEO, {video.path!r})
    (answer,) = engine.generate([Request("", media, "What is it?", Sampling(max_tokens=2))])
    engine.stop()
    print(answer.completion_tokens, *sys.modules.keys() & {{"torch", "vllm", "transformers"}})
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.stdout.split() == ["2"], answer.stderr


def test_a_killed_server_is_waited_for_as_long_as_a_request_may_take(
    vllm_server: VllmServer, proxy: Proxy, eventually: Eventually
) -> None:
    straight = f"http://127.0.0.1:{vllm_server.port}/v1"
    hasty = start_engine(proxy, openai_base_url=straight, request_timeout_seconds=2)
    patient = start_engine(proxy)
    vllm_server.kill()

    with pytest.raises(ServiceError, match="no request for a while"):
        hasty.generate([asked("Say something.")])
    assert hasty.state is EngineState.DEAD

    with ThreadPoolExecutor() as threads:
        answers = threads.submit(patient.generate, [asked("Say something.")])
        eventually(lambda: _assert_state(patient, EngineState.DEAD))
        vllm_server.start()
        completion(*answers.result(60))
    _assert_state(patient, EngineState.UP)
    completion(*hasty.generate([asked("Say something.")]))
    for engine in (hasty, patient):
        engine.stop()


def _assert_state(engine: OpenAiEngine, state: EngineState) -> None:
    assert engine.state is state
