"""Keep what else a run was started with, so that `capflow retry` and `capflow resume` go on alike."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_run_terms"
down_revision = "2026_11_26_sampling"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("strict", "skips_text_only"):
        op.add_column("runs", sa.Column(name, sa.Boolean(), server_default="false", nullable=False))
    op.add_column("runs", sa.Column("max_tokens", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("max_cost", sa.Float(), nullable=True))
    op.add_column("runs", sa.Column("prices", sa.Text(), nullable=True))


def downgrade() -> None:
    for name in ("prices", "max_cost", "max_tokens", "skips_text_only", "strict"):
        op.drop_column("runs", name)
