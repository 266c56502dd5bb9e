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

from capflow_tasks.errors import EngineDead, MediaMissing, PromptTooLong
from capflow_tasks.records import Completion, MediaRef, Modality, Request, Sampling
from capflow_tasks.settings import Settings
from tests.conftest import Eventually
from tests.datasets import draw_picture

if TYPE_CHECKING:
    from capflow_tasks.vllm_engine import VllmEngine

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


def start_engine(model: Path, **changes: Any) -> VllmEngine:
    from capflow_tasks.vllm_engine import build

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


def test_a_dead_engine_core_is_told_to_the_caller_and_replaced_for_the_next(tiny_model: Path) -> None:
    engine = start_engine(tiny_model, request_timeout_seconds=10)
    try:
        for core in _engine_cores():
            core.send_signal(signal.SIGKILL)
        with pytest.raises(EngineDead):
            engine.generate([asked("Say something.")])
        (answer,) = map(completion, engine.generate([asked("Say something.")]))
        assert answer.text
    finally:
        engine.stop()


def _engine_cores() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name().startswith("VLLM::Engine") and _runs(child)]


def _assert_gone(processes: list[psutil.Process]) -> None:
    assert [each for each in processes if _runs(each)] == []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
