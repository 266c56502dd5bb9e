"""Add what the guard found in an answer: repairs, and attempts that it refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_guard"
down_revision = "2026_11_25_stopped_runs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("guard", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("results", "guard")
