"""Commands that look after a fleet: doctor, metrics and db."""

from dataclasses import asdict
from pathlib import Path

import click

from producer.cli import options as cli


@click.command(
    cls=cli.Command,
    exit_codes=(0, 1, 2, 3),
    exit_meanings={0: "nothing fails, though there may be warnings", 1: "a check fails"},
)
@cli.option(
    "--plan", "Check the media of this plan: its roots and a sample of its files.", kind=cli.EXISTING_FILE
)
@cli.option("-o --output", "Folder of the caption files, for its free space.", "Output/Caption", cli.FOLDER)
@cli.option(
    "--timeout SECONDS timeout_seconds",
    "How long workers may take to answer.",
    2.0,
    click.FloatRange(0.1, 60),
    "DOCTOR_TIMEOUT",
)
@cli.option(
    "--gpu",
    "Only compute what would fit on this GPU, which need not be here: h200, 4xa800, 24gb.",
    variable="DOCTOR_GPU",
)
@cli.option("--model", "Model to check, a folder or hub name; as in the settings where left out.")
@cli.json_option("all findings as one JSON object")
@click.pass_context
def doctor(
    context: click.Context,
    plan: Path | None,
    output: Path,
    timeout_seconds: float,
    gpu: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Check everything that a fleet needs; print OK, WARN or FAIL and the remedy, a line each.

    It checks this machine with the settings of this shell, so run it where a worker will run and where
    `capflow caption` will run. It changes nothing and prints no password.

    Examples:
      capflow doctor
      capflow doctor --plan plan.jsonl -o captions
      capflow doctor --gpu h200 --model Qwen/Qwen2.5-VL-72B-Instruct-FP8
      CAPFLOW_QUANTIZATION=fp8 capflow doctor --gpu 2xrtx4090
      capflow doctor --json | jq -r '.findings[] | select(.level != "ok") | .remedy'
    """
    from capflow_tasks.engine.capacity import gpus_of
    from capflow_tasks.settings import read_settings
    from producer.doctor import check_capacity, check_fleet

    settings = read_settings()
    if model:
        settings = settings.model_copy(update={"model": model})
    if gpu:
        found = check_capacity(settings, gpus_of(gpu))
    else:
        found = check_fleet(settings, output, plan, timeout_seconds)
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            click.echo(f"{finding.level.upper():<4}  {finding.check:<13}  {finding.said}{remedy}")
    code = max((finding.exit_code for finding in findings), default=0)
    if as_json:
        listed = [asdict(finding) for finding in findings]
        for each in listed:
            del each["exit_code"]
        cli.print_json({"exit_code": code, "findings": listed})
    context.exit(code)


@click.command(cls=cli.Command, exit_codes=(0, 2, 3))
@cli.option(
    "--port", "Port to serve on; 0 for any free one.", 9399, click.IntRange(0, 65535), "EXPORTER_PORT"
)
@cli.option("--host", "Address to serve on.", "0.0.0.0", variable="METRICS_HOST")
@cli.option(
    "--cache-seconds SECONDS",
    "How long an answer is served again; longer where reading the database takes long.",
    5.0,
    click.FloatRange(0),
    "EXPORTER_CACHE_SECONDS",
)
@cli.flag("--once", "Print the metrics and exit.")
def metrics(port: int, host: str, cache_seconds: float, once: bool) -> None:
    """Serve the whole fleet's metrics to Prometheus: backlog, queues, workers, runs, failures.

    One exporter is enough for a fleet. What only a worker knows, the worker serves: see CAPFLOW_METRICS_PORT.

    Examples:
      capflow metrics                    # http://localhost:9399/metrics, until stopped
      capflow metrics --once | grep backlog
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from capflow_tasks.fleet.application import make_app
    from capflow_tasks.fleet.embedded import broker_url, database_url
    from capflow_tasks.observe.pages import WebPages, metrics_page, plain_page
    from capflow_tasks.settings import read_settings
    from capflow_tasks.store.database import connect
    from capflow_tasks.store.statistics import Statistics
    from producer.cli.caption import stop_on_signals
    from producer.fleet_metrics import FleetCollector
    from producer.services import Broker, reading

    settings = read_settings()
    engine = connect(database_url(settings), pool_size=1)
    broker = Broker(make_app(settings, broker_url(settings)))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        FleetCollector(Statistics(engine), broker, settings.queues, settings.lease_seconds, cache_seconds)
    )
    if once:
        with reading(database_url(settings)) as checked:
            Statistics(checked).runs()
        click.echo(generate_latest(registry), nl=False)
        return
    pages = WebPages(host, port, {"/metrics": metrics_page(registry), "/healthz": lambda: plain_page("ok\n")})
    click.echo(f"serving the fleet's metrics on port {pages.port} of {host}, path /metrics", err=True)
    with stop_on_signals() as stopping:
        stopping.wait()
    pages.stop()
    engine.dispose()


@click.group(cls=cli.Group)
def db() -> None:
    """Look after the database that CAPFLOW_DATABASE_URL names."""


@db.command(cls=cli.Command, exit_codes=(0, 2, 3))
def upgrade() -> None:
    """Bring the schema to the newest version; does nothing if it is there already.

    Examples:
      capflow db upgrade
    """
    from capflow_tasks.settings import read_settings
    from capflow_tasks.store.database import connect, shown
    from capflow_tasks.store.database import upgrade as upgrade_schema
    from producer.services import database

    with database(read_settings()) as url:
        engine = connect(url)
        try:
            revision = upgrade_schema(engine)
        finally:
            engine.dispose()
    click.echo(f"{shown(url)} is at revision {revision}")
