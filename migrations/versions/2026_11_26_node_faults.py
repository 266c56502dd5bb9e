"""Add why a worker takes no work, what workers have in common, and why a run paused by itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_26_node_faults"
down_revision = "2026_11_26_set_aside_shards"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("fault", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("traits", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("pause", sa.Text(), nullable=True))
    kinds = postgresql.ARRAY(sa.Text())
    op.add_column("runs", sa.Column("accepted_failures", kinds, server_default="{}", nullable=False))


def downgrade() -> None:
    op.drop_column("runs", "accepted_failures")
    op.drop_column("runs", "pause")
    op.drop_column("workers", "traits")
    op.drop_column("workers", "fault")
