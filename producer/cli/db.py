"""The command capflow-db: migrations."""

from __future__ import annotations

import click

from capflow_tasks.settings import read_settings
from producer.cli.options import EXIT_CODES, Command


@click.group()
def main() -> None:
    """Look after the database that CAPFLOW_DATABASE_URL names."""


@main.command(name="upgrade", cls=Command, epilog=EXIT_CODES)
def upgrade_command() -> None:
    """Bring the schema to the newest version. Does nothing when it is there already."""
    from capflow_tasks.fleet.embedded import database_url
    from capflow_tasks.store.database import connect, shown, upgrade

    url = database_url(read_settings())
    engine = connect(url)
    try:
        revision = upgrade(engine)
    finally:
        engine.dispose()
    click.echo(f"{shown(url)} is at revision {revision}")


if __name__ == "__main__":
    main()
