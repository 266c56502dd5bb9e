"""Add shards that a run has set aside, and the size and time of the file that a shard was read from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_set_aside_shards"
down_revision = "2026_11_26_workflow"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shards", sa.Column("set_aside_by", sa.BigInteger(), nullable=True))
    op.add_column("shards", sa.Column("annotation_stamp", sa.Text(), nullable=True))
    op.create_foreign_key(
        "fk_shards_set_aside_by", "shards", "runs", ["set_aside_by"], ["id"], ondelete="CASCADE"
    )
    op.alter_column("shards", "run_id", nullable=True)
    op.create_check_constraint("has_one_run", "shards", "num_nonnulls(run_id, set_aside_by) = 1")


def downgrade() -> None:
    op.execute("DELETE FROM shards WHERE run_id IS NULL")
    op.drop_constraint("has_one_run", "shards")
    op.alter_column("shards", "run_id", nullable=False)
    op.drop_column("shards", "annotation_stamp")
    op.drop_column("shards", "set_aside_by")
