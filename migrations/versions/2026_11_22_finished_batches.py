"""Index batches by the time they finished, for throughput and ETA."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_finished_batches"
down_revision = "2026_11_22_pin_ranks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_batches_finished",
        "batches",
        ["finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_batches_finished", table_name="batches")
