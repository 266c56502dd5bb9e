"""Add to each answer its sampling, and to each sample what its media were when it was answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_sampling"
down_revision = "2026_11_26_provenance"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("sampling", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("samples", sa.Column("media_stamp", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("samples", "media_stamp")
    op.drop_column("results", "sampling")
