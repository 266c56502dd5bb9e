"""Add the GPUs that each worker holds, from which costs are computed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_worker_gpus"
down_revision = "2026_11_26_guard"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "worker_gpus",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("gpus", sa.REAL(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_worker_gpus"),
    )


def downgrade() -> None:
    op.drop_table("worker_gpus")
