"""Add runs whose shards only the workers of their rank may take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_pin_ranks"
down_revision = "2026_11_22_initial"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "runs", sa.Column("pin_ranks", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )


def downgrade() -> None:
    op.drop_column("runs", "pin_ranks")
