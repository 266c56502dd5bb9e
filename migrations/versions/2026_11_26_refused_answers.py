"""Add the refused answers of samples that failed, whose tokens count for costs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_refused_answers"
down_revision = "2026_11_26_candidates"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "refused_answers",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("sample_id", sa.BigInteger(), nullable=False),
        sa.Column("candidate", sa.SmallInteger(), nullable=False),
        sa.Column("stage", sa.Enum(name="stage", native_enum=False, length=16), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.REAL(), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint(
            "stage IN ('route', 'perceive', 'reason', 'summarize', 'score')", name="ck_refused_answers_stage"
        ),
        sa.ForeignKeyConstraint(
            ["sample_id"], ["samples.id"], name="fk_refused_answers_sample_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_refused_answers_sample_id", "refused_answers", ["sample_id"])


def downgrade() -> None:
    op.drop_table("refused_answers")
