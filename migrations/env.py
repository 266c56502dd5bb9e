"""Runs the migrations on the connection that `capflow_tasks.store.database` passes in."""

from __future__ import annotations

from alembic import context

from capflow_tasks.store.tables import Table


def run() -> None:
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
