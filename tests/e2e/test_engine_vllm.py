"""VllmEngine by itself, with the tiny model on the CPU. One engine serves all tests but the last."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from prometheus_client import REGISTRY

from capflow_tasks.captioning.answers import expected_grades
from capflow_tasks.domains.schemas import broken_by, closed
from capflow_tasks.errors import EngineDead, MediaMissing, PromptTooLong
from capflow_tasks.records import Completion, MediaRef, Modality, Request, Sampling
from capflow_tasks.settings import Settings
from tests.conftest import Eventually
from tests.datasets import draw_picture

if TYPE_CHECKING:
    from capflow_tasks.engine.vllm_engine import VllmEngine

pytestmark = [
    pytest.mark.e2e,
    # vLLM leaves that to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

SYSTEM = "You describe pictures."
#: Of the picture alone, at the least: what the engine makes of the smallest one.
PICTURE_TOKENS = 256
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


def start_engine(model: Path, **changes: Any) -> VllmEngine:
    from capflow_tasks.engine.vllm_engine import build

    engine = build(Settings(model=str(model), max_model_len=2048, **changes), str(model))
    engine.start()
    return engine


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def vllm_engine(tiny_model: Path) -> Iterator[VllmEngine]:
    engine = start_engine(tiny_model)
    yield engine
    engine.stop()


@pytest.fixture
def picture(tmp_path: Path) -> MediaRef:
    """Not seen by the engine before: another folder is another picture."""
    draw_picture(tmp_path / "0.png", 0)
    return MediaRef(Modality.IMAGE, str(tmp_path / "0.png"))


def asked(instruction: str, *media: MediaRef, **changes: object) -> Request:
    fields: dict[str, object] = {"sampling": Sampling(max_tokens=8, temperature=0.0), **changes}
    return Request(SYSTEM, media, instruction, **fields)  # type: ignore[arg-type]


def completion(answer: object) -> Completion:
    assert isinstance(answer, Completion), answer
    return answer


def test_many_threads_get_their_own_answers(vllm_engine: VllmEngine, picture: MediaRef) -> None:
    batches = [
        [asked(f"Describe it in {count} words.", picture, sampling=Sampling(max_tokens=count))]
        for count in range(2, 10)
    ]

    with ThreadPoolExecutor(len(batches)) as threads:
        answers = [completion(answer) for (answer,) in threads.map(vllm_engine.generate, batches)]

    assert [answer.completion_tokens for answer in answers] == list(range(2, 10))
    assert all(answer.prompt_tokens > PICTURE_TOKENS for answer in answers)
    assert all(answer.finish_reason == "length" and answer.seconds > 0 for answer in answers)


def test_a_bad_request_fails_alone(vllm_engine: VllmEngine, picture: MediaRef, tmp_path: Path) -> None:
    gone = MediaRef(Modality.IMAGE, str(tmp_path / "gone.png"))

    first, missing, long, last = vllm_engine.generate(
        [asked("One.", picture), asked("Two.", gone), asked("word " * 5000, picture), asked("Four.", picture)]
    )

    assert isinstance(missing, MediaMissing)
    assert isinstance(long, PromptTooLong)
    assert completion(first).text
    assert completion(last).text


def test_a_route_is_one_letter_with_a_probability_for_each(
    vllm_engine: VllmEngine, picture: MediaRef
) -> None:
    letters = tuple("ABCDEFGH")
    request = asked("Choose a letter.", picture, choices=letters, sampling=Sampling(1, temperature=0.0))

    (answer,) = map(completion, vllm_engine.generate([request]))

    assert tuple(answer.probabilities) == letters
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert all(0 < probability < 1 for probability in answer.probabilities.values())
    assert answer.text == max(answer.probabilities, key=answer.probabilities.__getitem__)


def test_an_answer_by_schema_can_be_read(vllm_engine: VllmEngine, picture: MediaRef) -> None:
    request = asked("Grade it.", picture, schema=SCHEMA, sampling=Sampling(max_tokens=64, temperature=1.0))

    for answer in vllm_engine.generate([request] * 4):
        scores = json.loads(completion(answer).text)
        assert set(scores) == {"accuracy", "overall"}
        assert set(scores.values()) <= {1, 2, 3}
        assert "".join(token.text for token in completion(answer).tokens).startswith(completion(answer).text)
        expected = expected_grades(completion(answer).tokens, scores)
        assert expected is not None
        assert all(1 <= grade <= 3 for grade in expected.values())


def test_an_object_by_a_users_schema_comes_without_its_tokens(
    vllm_engine: VllmEngine, picture: MediaRef
) -> None:
    limit = Sampling(max_tokens=120, temperature=1.0)
    request = asked("Catalogue it.", picture, schema=FORM, wants_tokens=False, sampling=limit)

    (answer,) = map(completion, vllm_engine.generate([request]))

    assert broken_by(json.loads(answer.text, strict=False), FORM) is None
    assert answer.tokens == ()
    assert (answer.sampling["max_tokens"], answer.sampling["temperature"]) == (120, 1.0)


def test_the_picture_is_computed_once_for_all_calls_of_a_sample(
    vllm_engine: VllmEngine, picture: MediaRef
) -> None:
    (first,) = map(completion, vllm_engine.generate([asked("What is it?", picture)]))
    (second,) = map(completion, vllm_engine.generate([asked("Where is it?", picture)]))

    assert first.cached_tokens < PICTURE_TOKENS
    assert second.cached_tokens >= PICTURE_TOKENS


def test_a_text_without_media_is_answered(vllm_engine: VllmEngine) -> None:
    (answer,) = map(completion, vllm_engine.generate([asked("Say something.")]))

    assert answer.text
    assert answer.prompt_tokens < PICTURE_TOKENS


def test_a_stopped_engine_leaves_no_process(vllm_engine: VllmEngine, eventually: Eventually) -> None:
    """Comes last: the others' engine is over after this."""
    cores = _engine_cores()
    assert cores

    vllm_engine.stop()

    eventually(lambda: _assert_gone(cores))


@pytest.fixture(scope="module")
def forgetful_engine(tiny_model: Path) -> Iterator[VllmEngine]:
    """Keeps no decoded file, the pixels of few pictures, and the prefixes of eight."""
    engine = start_engine(
        tiny_model,
        request_timeout_seconds=10,
        media_cache_mib=0,
        engine_args={"mm_processor_cache_gb": 0.01, "num_gpu_blocks_override": 24},
    )
    yield engine
    engine.stop()


def files_read() -> float:
    """The number of pictures decoded so far."""
    return REGISTRY.get_sample_value("capflow_media_load_duration_seconds_count", {"kind": "image"}) or 0.0


def pictures_read() -> float:
    """The number of pictures decoded so far."""
    return REGISTRY.get_sample_value("capflow_media_load_duration_seconds_count", {"kind": "image"}) or 0.0


def test_later_calls_of_a_sample_send_no_pixels(forgetful_engine: VllmEngine, picture: MediaRef) -> None:
    before = pictures_read()
    (first,) = map(completion, forgetful_engine.generate([asked("What is it?", picture)]))
    (second,) = map(completion, forgetful_engine.generate([asked("What is it?", picture)]))

    assert pictures_read() - before == 1
    assert (second.text, second.prompt_tokens) == (first.text, first.prompt_tokens)
    assert second.prompt_tokens > PICTURE_TOKENS


def draw_pictures(folder: Path, count: int) -> list[MediaRef]:
    for number in range(count):
        draw_picture(folder / f"{number}.png", number)
    return [MediaRef(Modality.IMAGE, str(folder / f"{number}.png")) for number in range(count)]


@pytest.mark.parametrize(("open_samples", "is_kept"), [(4, True), (16, False)])
def test_prefixes_are_computed_once_for_as_many_samples_as_the_cache_holds(
    forgetful_engine: VllmEngine, tmp_path: Path, open_samples: int, is_kept: bool
) -> None:
    assert forgetful_engine.cache_tokens == 24 * 128
    pictures = draw_pictures(tmp_path, open_samples)

    rounds = [
        [completion(*forgetful_engine.generate([asked(question, each)])) for each in pictures]
        for question in ("What is it?", "Where is it?")
    ]

    assert all((answer.cached_tokens >= PICTURE_TOKENS) is is_kept for answer in rounds[1])


def test_pixels_that_the_engine_has_dropped_are_sent_again(
    forgetful_engine: VllmEngine, tmp_path: Path
) -> None:
    before = pictures_read()
    pictures = draw_pictures(tmp_path, 12)
    for each in pictures:
        completion(*forgetful_engine.generate([asked("What is it?", each)]))
    answers = forgetful_engine.generate([asked(question, pictures[0]) for question in ("Why?", "Where?")])

    assert all(completion(answer).prompt_tokens > PICTURE_TOKENS for answer in answers)
    # each once, and the first again for those that found it gone
    assert pictures_read() - before > len(pictures)


def test_a_dead_engine_core_is_told_to_the_caller_and_replaced_for_the_next(
    forgetful_engine: VllmEngine, picture: MediaRef
) -> None:
    completion(*forgetful_engine.generate([asked("What is it?", picture)]))
    for core in _engine_cores():
        core.send_signal(signal.SIGKILL)
    with pytest.raises(EngineDead):
        forgetful_engine.generate([asked("What is it?", picture)])
    (answer,) = map(completion, forgetful_engine.generate([asked("What is it?", picture)]))
    assert answer.prompt_tokens > PICTURE_TOKENS


def _engine_cores() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if child.name().startswith("VLLM::Engine") and _runs(child)]


def _assert_gone(processes: list[psutil.Process]) -> None:
    assert [each for each in processes if _runs(each)] == []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
