"""Slopes beside trials: the first-order change of the fitness at every site of a profile."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "evo_slopes",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["evo_trials.id"], name=op.f("fk_evo_slopes_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_evo_slopes")),
    )


def downgrade() -> None:
    """Remove it with what it holds."""
    op.drop_table("evo_slopes")
