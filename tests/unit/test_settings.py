from __future__ import annotations

from collections.abc import Iterator

import pytest

from capflow_tasks.errors import SettingsError
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings, check_environment, read_settings


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(f"CAPFLOW_{name}", value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://host/database"),
        ("DATABASE_URL", "postgresql"),
        ("DATABASE_URL", "postgresql://user:word@host:port/database"),
        ("DATABASE_URL", "postgresql://host/database?prepare_threshold=never"),
        ("BROKER_URL", "carrier-pigeon://loft"),
        ("MAX_NUM_SEQS", "0"),
        ("GPU_MEMORY_UTILIZATION", "1.5"),
        ("CONCURRENCY", "many"),
        ("LEASE_SECONDS", "-1"),
        ("ENGINE_ARGS", "{not json"),
        ("QUEUE_MODELS", '["a list"]'),
        ("STAGE_QUEUES", '{"polish": "gpu"}'),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    (line,) = refusal(monkeypatch, **{name: value})

    assert f"CAPFLOW_{name}" in line


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CONCURRENCY", "many", "CAPFLOW_CONCURRENCY='many': expected a whole number"),
        ("SURGE_SAMPLES", "3.5", "CAPFLOW_SURGE_SAMPLES='3.5': expected a whole number"),
        ("LEASE_SECONDS", "0", "CAPFLOW_LEASE_SECONDS='0': expected more than 0"),
        ("LOG_TEXT", "maybe", "CAPFLOW_LOG_TEXT='maybe': expected 1 or 0"),
        ("QUEUE_GPU_MEMORY", '{"gpu": 3}', "CAPFLOW_QUEUE_GPU_MEMORY.gpu=3: expected 1 or less"),
    ],
)
def test_a_bad_number_is_answered_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    assert refusal(monkeypatch, **{name: value}) == [expected]


def test_every_bad_value_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refusal(monkeypatch, CONCURRENCY="0", MIN_PIXELS="1")

    assert [line.partition("=")[0] for line in lines] == ["CAPFLOW_MIN_PIXELS", "CAPFLOW_CONCURRENCY"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"MIN_PIXELS": "200000", "MAX_PIXELS": "100000"},
            "CAPFLOW_MIN_PIXELS=200000 is above CAPFLOW_MAX_PIXELS",
        ),
        (
            {"MAX_MODEL_LEN": "4096", "MAX_ANSWER_TOKENS": "4096"},
            "CAPFLOW_MAX_ANSWER_TOKENS=4096 leaves no room",
        ),
        (
            {"QUEUE_MODELS": '{"judg": "m"}'},
            "CAPFLOW_QUEUE_MODELS: no stage is sent to the queue 'judg', only to",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    (line,) = refusal(monkeypatch, **variables)

    assert said in line


def test_a_password_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = refusal(monkeypatch, DATABASE_URL="mysql://user:secret@host/database")

    assert "secret" not in line


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_a_database_url_means_the_driver_that_is_there(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("CAPFLOW_DATABASE_URL", f"{scheme}://user@host/database")

    assert read_settings().database_url == "postgresql+psycopg://user@host/database"


def test_a_blank_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "DTYPE"):
        monkeypatch.setenv(f"CAPFLOW_{name}", " ")

    settings = read_settings()

    assert (settings.database_url, settings.broker_url, settings.dtype) == (None, None, None)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("CONCURENCY", "CONCURRENCY"),
        ("DATABASE", "DATABASE_URL"),
        ("LEASE_SECS", "LEASE_SECONDS"),
        ("BATCHSIZE", "BATCH_SIZE"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_right_name(
    monkeypatch: pytest.MonkeyPatch, misspelt: str, meant: str
) -> None:
    monkeypatch.setenv(f"CAPFLOW_{misspelt}", "1")

    with pytest.raises(SettingsError, match=f"^CAPFLOW_{misspelt}: .* did you mean CAPFLOW_{meant}\\?$"):
        check_environment({"CAPFLOW_BATCH_SIZE"})


def test_variables_of_settings_options_and_deployments_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "BATCH_SIZE", "TAG", "TARGET", "USER", "ENV", "ENVIRONMENT", "PASSWORD_FILE"):
        monkeypatch.setenv(f"CAPFLOW_{name}", "1")

    check_environment({"CAPFLOW_BATCH_SIZE"})


def test_stages_go_to_gpu_unless_set_otherwise() -> None:
    assert Settings().queues == ("gpu",)

    settings = Settings(
        stage_queues={Stage.SCORE: "judge"},
        queue_models={"judge": "big"},
        queue_engines={"judge": "openai"},
        model="small",
    )

    assert settings.queues == ("gpu", "judge")
    assert (settings.queue_of(Stage.SCORE), settings.queue_of(Stage.ROUTE)) == ("judge", "gpu")
    assert (settings.model_of("judge"), settings.model_of("gpu")) == ("big", "small")
    assert (settings.engine_of("judge"), settings.engine_of("gpu")) == ("openai", "vllm")


def test_a_key_is_never_shown() -> None:
    settings = Settings(openai_api_key="sk-secret")

    assert "sk-secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_models_in_one_worker_share_one_gpu_and_others_have_their_own() -> None:
    settings = Settings(stage_queues={"score": "judge"}, queue_gpu_memory={"gpu": 0.9, "judge": 0.4})

    for queue in settings.queues:
        settings.check_shares([queue])
    with pytest.raises(SettingsError, match=r"the shares of gpu, judge add up to 1\.3"):
        settings.check_shares(settings.queues)
