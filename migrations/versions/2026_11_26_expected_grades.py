"""Add the expected grades of a judge's answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_expected_grades"
down_revision = "2026_11_26_worker_gpus"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("expected", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("results", "expected")
