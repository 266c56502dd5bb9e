"""Add to each answer the revision of its model, and the engine that ran it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_provenance"
down_revision = "2026_11_26_refused_answers"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("revision", "engine"):
        op.add_column("results", sa.Column(column, sa.Text(), nullable=True))


def downgrade() -> None:
    for column in ("revision", "engine"):
        op.drop_column("results", column)
