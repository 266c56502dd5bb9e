"""Add to each caption what was checked of it: the text that it quotes, and its claims."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_checks"
down_revision = "2026_11_26_run_terms"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("checks", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("results", "checks")
