"""What `capflow status` shows of a run's figures."""

from __future__ import annotations

import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from capflow_tasks.errors import SettingsError
from capflow_tasks.records import Stage
from capflow_tasks.store.figures import (
    Activity,
    DomainFigures,
    FailureKind,
    FurtherCaptions,
    GradeCount,
    PromptEconomy,
    RunFigures,
    RunState,
    ShardFigures,
    StageFigures,
    Throughput,
    Tokens,
    Totals,
    Usage,
    WorkerFigures,
)
from capflow_tasks.store.states import BatchState, SampleState, Tally
from producer.cli.runs import command_of
from producer.console import duration, short_count, usd
from producer.cost import Price, Prices, cost_of, read_prices
from producer.reading.caption_files import Minimums
from producer.run import name_of_run
from producer.status.display import Status, run_line, run_tables, watch
from producer.status.snapshot import Kept, Snapshot, accepted_of, retry_line

PLAN = "/data/plan.jsonl"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MISSING = FailureKind("media_missing", 2, (Stage.ROUTE,), False, "[gone].png does not exist")

quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def a_table(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, "utf-8")
    return path


def a_run(**changes: Any) -> RunFigures:
    run = RunFigures(
        id=1,
        name=name_of_run(Path(PLAN)),
        plan=PLAN,
        output=str(Path("Output/Caption").absolute()),
        stages=tuple(Stage),
        min_confidence=0,
        pin_ranks=False,
        is_stopped=False,
        created_at=NOON,
        shards=1,
        samples=1000,
        expanded=1000,
        tally=Tally(done=200, failed=2),
        open_batches=5,
        running_batches=3,
    )
    return replace(run, **changes)


def a_usage(
    worker: str = "a/1",
    model: str = "model",
    hours: float = 1,
    stage: Stage = Stage.SCORE,
    gpus: float | None = None,
) -> Usage:
    tokens = Tokens(prompt=1_000_000, cached=750_000, completion=100_000)
    return Usage(
        stage, model, worker, 10, tokens, 5.0, NOON, NOON + timedelta(hours=hours), hours * 3600, gpus
    )


WORKER = WorkerFigures("celery@a/1", "celery@a", datetime.now(UTC), 0.5, is_alive=True, running_batches=1)


def a_snapshot(prices: Prices, **changes: Any) -> Snapshot:
    run = a_run(**changes)
    usages = [a_usage()]
    return Snapshot(
        run=run,
        activity=Activity(
            stages=[StageFigures(stage, dict.fromkeys(BatchState, 8)) for stage in Stage],
            throughput=Throughput(10, 40, Tokens(20_000, 15_000, 1000)),
            workers=[WORKER],
        ),
        failures=[MISSING],
        totals=Totals(
            [ShardFigures("set", "/set.json", 0, 1, 0, 1000, 40, run.tally)],
            [DomainFigures("Natural", dict.fromkeys(SampleState, 1), {})],
            usages,
            PromptEconomy(10, 50_000, 12_345, 10_000),
            [GradeCount("Natural", {"factual_accuracy": 3}, 3, 160), GradeCount("Natural", {}, 2, 40)],
        ),
        kept=Kept(200, 160, 1_100_000),
        first_kept=Kept(200, 100, 900_000),
        cost=cost_of(usages, prices),
    )


def shown(snapshot: Snapshot, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(run_tables(snapshot))
    return captured.get()


def test_the_shipped_table_prices_an_api_by_its_tokens() -> None:
    cost = cost_of([a_usage(model="gpt-4.1")], read_prices())

    assert cost.usd == pytest.approx(0.25 * 2.00 + 0.75 * 0.50 + 0.1 * 8.00)
    assert cost.per(100) == pytest.approx(0.01675)
    assert cost.unpriced == []


def test_the_published_cost_follows_from_the_published_speed(tmp_path: Path) -> None:
    prices = read_prices(a_table(tmp_path, "models: {Qwen2.5-VL-72B-Instruct: {gpu: A800}}"))
    usage = a_usage(model="/models/Qwen2.5-VL-72B-Instruct/")

    assert 100 * (cost_of([usage], prices).per(1427) or 0) == pytest.approx(0.14, abs=0.001)


@pytest.mark.parametrize(
    ("gpus_per_worker", "hours"),
    [
        ("", 2 * 4 + 0.5 * 1),
        (", gpus_per_worker: 3", 2.5 * 3),
    ],
)
def test_gpus_are_paid_for_while_their_worker_worked(
    tmp_path: Path, gpus_per_worker: str, hours: float
) -> None:
    table = f"gpus: {{mine: 3}}\nmodels: {{model: {{gpu: mine{gpus_per_worker}}}}}"
    usages = [
        a_usage("a/1", hours=2, stage=Stage.ROUTE, gpus=4),
        a_usage("a/1", hours=2, gpus=4),
        a_usage("b/1", hours=0.5),
    ]

    cost = cost_of(usages, read_prices(a_table(tmp_path, table)))

    assert cost.worker_seconds == 2.5 * 3600
    assert cost.usd == pytest.approx(hours * 3)


def test_without_a_price_for_every_model_there_is_no_cost(tmp_path: Path) -> None:
    cost = cost_of([a_usage(model="gpt-4.1"), a_usage(model="mine")], read_prices())

    assert (cost.usd, cost.per(10), cost.unpriced) == (None, None, ["mine"])
    assert cost_of([], read_prices()).usd is None


def test_a_model_is_found_by_name_by_last_part_or_as_any_other(tmp_path: Path) -> None:
    table = 'models: {org/model: {gpu: H100}, model: {gpu: H200}, "*": {prompt: 1, completion: 2}}'
    prices = read_prices(a_table(tmp_path, table))

    assert prices.of("org/model") == Price(gpu="H100")
    assert prices.of("/models/model") == Price(gpu="H200")
    assert prices.of("another") == Price(prompt=1, completion=2)
    assert prices.usd("org/model", [a_usage(hours=1)]) == 2.50
    assert prices.usd("another", [a_usage()]) == pytest.approx(1 + 0.1 * 2)
    assert read_prices().of("another") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {a: {prompt: cheap, completion: 1}}", "models.a.prompt: "),
        ("models: {a: {prompt: true, completion: 1}}", "models.a.prompt: "),
        ("models: {a: {prompt: -1, completion: 1}}", "models.a.prompt: "),
        ("models: {a: {prompt: .nan, completion: 1}}", "models.a.prompt: "),
        ("models: {a: {prompt: 1}}", "models.a: expected prompt and completion"),
        ("models: {a: {}}", "models.a: expected prompt and completion"),
        ("models: {a: {gpu: A800, prompt: 1, completion: 1}}", "models.a: has prices of tokens and a gpu"),
        ("models: {a: {gpus_per_worker: 2}}", "models.a: gpus_per_worker without gpu"),
        ("models: {a: {gpu: A800, gpus_per_worker: 0}}", "models.a.gpus_per_worker: "),
        ("models: {a: {gpu: B200}}", "models.a.gpu: no GPU 'B200'; add its price per hour under gpus"),
        ("models: {a: 3}", "models.a: expected a mapping"),
        ("gpus: {A800: dear}", "gpus.A800: "),
        ("model: {}", "top level: unknown key 'model'; remove it or use one of: gpus, models"),
        ("gpus: {A800: 1, A800: 2}", "line 1: key 'A800' is given twice"),
        ("gpus: [", "line 1: "),
        ("", "top level: expected a mapping"),
    ],
)
def test_a_bad_table_is_refused_with_file_key_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    path = a_table(tmp_path, text)

    with pytest.raises(SettingsError) as raised:
        read_prices(path)

    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{path}: {expected}")
    assert "; " in line


_words = st.text(string.ascii_letters + string.digits + "*._/ é\0", max_size=6)
_numbers = st.none() | st.booleans() | st.integers() | st.floats() | _words
_models = st.dictionaries(
    st.sampled_from(["prompt", "cached", "completion", "gpu", "gpus_per_worker"]) | _words, _numbers
)
_tables = st.fixed_dictionaries(
    {},
    optional={
        "gpus": st.dictionaries(_words, _numbers) | _numbers,
        "models": st.dictionaries(_words, _models | _numbers) | st.lists(_numbers),
    },
)
_texts = _tables.map(lambda table: yaml.safe_dump(table).encode()) | st.binary(max_size=60)


@quietly
@given(written=_texts)
def test_any_table_is_read_or_refused_in_lines_that_name_file_and_remedy(
    tmp_path: Path, written: bytes
) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(written)
    try:
        prices = read_prices(path)
    except SettingsError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{path}: ")
            assert "; " in line
    else:
        for price in prices.models.values():
            assert price.gpu in prices.gpus or price.tokens_usd(Tokens(1, 0, 1)) >= 0


def test_a_retry_names_the_run_which_knows_what_it_was_asked_for() -> None:
    assert retry_line(a_run(name="my run"), MISSING) == "capflow retry 'my run' --kind media_missing"


def test_no_retry_is_shown_where_none_can_help() -> None:
    assert retry_line(a_run(), replace(MISSING, kind="bad_entry")) is None
    assert retry_line(a_run(plan="/data/captions", stages=(Stage.ROUTE, Stage.SCORE)), MISSING) is None


def test_captions_are_accepted_by_the_same_minimums_as_in_capflow_filter() -> None:
    grades = [
        GradeCount("Natural", {"factual_accuracy": 3, "professionalism": 3}, 3, 5),
        GradeCount("Natural", {"factual_accuracy": 2, "professionalism": 3}, 3, 7),
        GradeCount("Medical", {"factual_accuracy": 3, "professionalism": 3}, 2, 11),
    ]

    assert accepted_of(grades, Minimums(3, 3)) == 5
    assert accepted_of(grades, Minimums(3, 3, {"factual_accuracy": 2})) == 12
    assert accepted_of(grades, Minimums(3, 3, domains={"Medical": 2})) == 16


def test_the_page_shows_progress_throughput_cost_and_failures() -> None:
    page = shown(a_snapshot(read_prices()))

    assert "202 of 1,000 samples are finished: 200 done, 2 failed" in page
    assert "4.00 samples/s, 2.1k tokens/s over the last 10 s; ETA 3 min 20 s" in page
    assert "computed per sample: 1,234; with each prefix once: 1,000" in page
    assert "160 of 200 judged, 80.0%" in page
    assert "Cost: -; per 100 samples -; per accepted caption -" in page
    assert "No price is known for model: copy " in page
    assert "[gone].png does not exist" in page
    assert f"capflow retry {a_run().name} --kind media_missing\n" in page


def test_what_it_brought_to_write_captions_again_is_shown_and_what_it_cost() -> None:
    snapshot = a_snapshot(read_prices(), candidates=3, workflow="verified")
    again = replace(snapshot.totals, further=[FurtherCaptions(2, 80, Tokens(150_000, 0, 50_000))])
    page = shown(replace(snapshot, totals=again))

    assert "workflow verified, up to 3 captions of a sample" in page
    rows = {row[1].strip(): row for line in page.splitlines() if len(row := line.split("│")) > 2}
    assert [cell.strip() for cell in rows["the first of each sample"][2:-1]] == [
        *("200", "100", "50.0%", "900,000", "9,000")
    ]
    assert [cell.strip() for cell in rows["the best of up to 2"][2:-1]] == [
        *("200", "160", "80.0%", "1,100,000", "6,875")
    ]
    assert "80 samples got another caption" in page


def test_a_stopped_run_names_the_command_that_goes_on_with_its_candidates() -> None:
    run = a_run(workflow="verified", candidates=2, min_overall=2, token_budget=9000, name="again")

    command = f"capflow caption {PLAN} --workflow verified --candidates 2 --min-overall 2 --token-budget 9000"
    assert command_of(run) == f"{command} --run again"
    assert "--candidates" not in command_of(replace(run, candidates=3))
    limited = a_run(strict=True, skips_text_only=True, max_tokens=5000, max_cost=0.5, prices="/own.yaml")
    flags = "--strict --skip-text-only --max-tokens 5000 --max-cost 0.5 --prices /own.yaml"
    assert flags in command_of(limited)


def test_cost_is_shown_per_100_samples_and_per_accepted_caption(tmp_path: Path) -> None:
    prices = read_prices(a_table(tmp_path, "models: {model: {gpu: A800}}"))

    page = shown(a_snapshot(prices))

    assert "Cost: $2.00; per 100 samples $1.00; per accepted caption $0.013" in page
    assert "No price" not in page


def test_a_page_of_80_columns_cuts_no_name_and_no_number() -> None:
    page = shown(a_snapshot(read_prices()), width=80)

    tables = [line for line in page.splitlines() if "│" in line]
    assert max(map(len, tables)) <= 80
    assert not [line for line in tables if "…" in line]
    assert [stage for stage in Stage if f"│ {stage} " not in page] == []


def test_without_a_worker_there_is_no_eta() -> None:
    snapshot = a_snapshot(read_prices())

    assert snapshot.eta_seconds
    assert replace(snapshot, activity=replace(snapshot.activity, workers=[])).eta_seconds is None


def test_fewer_tokens_than_the_least_are_explained() -> None:
    snapshot = a_snapshot(read_prices())
    economy = PromptEconomy(10, 50_000, 8_000, 10_000)

    page = shown(replace(snapshot, totals=replace(snapshot.totals, economy=economy)))

    assert "computed per sample: 800; fewer than with each prefix once, 1,000" in page


def test_a_line_for_logs_shows_progress_throughput_and_eta() -> None:
    line = run_line(a_snapshot(read_prices()))

    assert line == (
        f"{name_of_run(Path(PLAN))} running: 202/1000 samples, 2 failed, 4.0 samples/s, ETA 3 min 20 s, "
        "2.1k tokens/s, 75.0% cached, 1 worker alive"
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_without_a_terminal_prints_a_line_each_time_until_the_run_is_done(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(Status({"number": each}, "", f"line {each}", is_final=each == 3) for each in range(1, 5))

    watch(answers, 0.001, as_json)

    lines = ['{"number": 1}', '{"number": 2}', '{"number": 3}'] if as_json else ["line 1", "line 2", "line 3"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, RunState.RUNNING),
        ({"running_batches": 0}, RunState.WAITING),
        ({"running_batches": 0, "open_batches": 0}, RunState.DONE),
        ({"running_batches": 0, "open_batches": 0, "expanded": 10}, RunState.STOPPED),
    ],
)
def test_where_a_run_stands_follows_from_its_batches(changes: dict[str, int], state: RunState) -> None:
    assert a_run(**changes).state is state


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (9.7, "10 s"),
        (45, "45 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (190_000, "2 d 4 h"),
        (None, "unknown"),
    ],
)
def test_durations_have_two_units_at_the_most(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def test_amounts_are_short() -> None:
    assert [usd(amount) for amount in (None, 0, 0.00002, 0.0014, 0.14, 1234.5)] == [
        "-",
        "$0.00",
        "less than $0.0001",
        "$0.0014",
        "$0.14",
        "$1,234.50",
    ]
    assert [short_count(number) for number in (0, 12.34, 950, 12_345, 4_560_000)] == [
        "0",
        "12.3",
        "950",
        "12.3k",
        "4.56M",
    ]
