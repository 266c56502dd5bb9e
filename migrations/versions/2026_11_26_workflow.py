"""Add the workflow of a run: a name, or the folder of its domain files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_workflow"
down_revision = "2026_11_26_expected_grades"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("workflow", sa.Text(), server_default="standard", nullable=False))


def downgrade() -> None:
    op.drop_column("runs", "workflow")
