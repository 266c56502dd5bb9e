"""Add the candidates of a sample: captions with answers of their own, of which the best is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_candidates"
down_revision = "2026_11_26_node_faults"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("candidates", sa.SmallInteger(), server_default="1", nullable=False))
    op.add_column("runs", sa.Column("min_overall", sa.SmallInteger(), server_default="3", nullable=False))
    op.add_column("runs", sa.Column("token_budget", sa.BigInteger(), nullable=True))
    for table in ("samples", "results"):
        op.add_column(table, sa.Column("candidate", sa.SmallInteger(), server_default="1", nullable=False))
    # Builds the index anew: a minute for each 100 million answers or so.
    op.drop_constraint("pk_results", "results", type_="primary")
    op.create_primary_key("pk_results", "results", ["sample_id", "candidate", "stage", "agent"])


def downgrade() -> None:
    op.execute(
        "DELETE FROM results USING samples WHERE samples.id = results.sample_id"
        " AND results.stage IN ('summarize', 'score') AND results.candidate <> samples.candidate"
    )
    op.drop_constraint("pk_results", "results", type_="primary")
    op.create_primary_key("pk_results", "results", ["sample_id", "stage", "agent"])
    op.drop_column("results", "candidate")
    op.drop_column("samples", "candidate")
    for column in ("token_budget", "min_overall", "candidates"):
        op.drop_column("runs", column)
