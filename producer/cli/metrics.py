"""The command capflow-metrics: parse, call, print."""

from __future__ import annotations

import click

from capflow_tasks.settings import read_settings
from producer.cli.options import EXIT_CODES, Command

EPILOG = f"""\b
Examples:
  capflow-metrics                    # http://localhost:9399/metrics, until stopped
  capflow-metrics --once | grep backlog

{EXIT_CODES}"""


@click.command(cls=Command, epilog=EPILOG)
@click.option(
    "--port",
    envvar="CAPFLOW_EXPORTER_PORT",
    default=9399,
    type=click.IntRange(0, 65535),
    help="Port to serve on; 0 for any free one.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--host",
    envvar="CAPFLOW_METRICS_HOST",
    default="0.0.0.0",
    help="Address to serve on.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--cache-seconds",
    envvar="CAPFLOW_EXPORTER_CACHE_SECONDS",
    default=5.0,
    type=click.FloatRange(0),
    help="How long what was seen is told again, seconds; longer where looking takes long.",
    show_envvar=True,
    show_default=True,
)
@click.option("--once", is_flag=True, help="Print the metrics and end.")
def metrics(port: int, host: str, cache_seconds: float, once: bool) -> None:
    """Serve the whole fleet's metrics to Prometheus: backlog, queues, workers, runs, failures.

    One of these is enough for a fleet. What a worker alone knows, it serves itself: CAPFLOW_METRICS_PORT.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from capflow_tasks.fleet.application import make_app
    from capflow_tasks.fleet.embedded import broker_url, database_url
    from capflow_tasks.observe.pages import WebPages, metrics_page, plain_page
    from capflow_tasks.store.database import connect
    from capflow_tasks.store.statistics import Statistics
    from producer.broker import Broker
    from producer.cli.caption import stop_on_signals
    from producer.fleet_metrics import FleetCollector

    settings = read_settings()
    engine = connect(database_url(settings), pool_size=1)
    broker = Broker(make_app(settings, broker_url(settings)))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        FleetCollector(Statistics(engine), broker, settings.queues, settings.lease_seconds, cache_seconds)
    )
    if once:
        click.echo(generate_latest(registry), nl=False)
        return
    pages = WebPages(
        host, port, {"/metrics": metrics_page(registry), "/healthz": lambda: plain_page("well\n")}
    )
    click.echo(f"the fleet's metrics are on port {pages.port} of {host}, /metrics", err=True)
    with stop_on_signals() as stopping:
        stopping.wait()
    pages.stop()
    engine.dispose()


if __name__ == "__main__":
    metrics()
