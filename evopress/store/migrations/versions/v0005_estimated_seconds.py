"""A trial tells the time its profile was estimated to take when a study with a latency budget measured it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Of trials stored before, and of those that no latency budget asked for, it is not known."""
    with op.batch_alter_table("evo_trials") as table:
        table.add_column(sa.Column("estimated_seconds", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    """Remove it."""
    with op.batch_alter_table("evo_trials") as table:
        table.drop_column("estimated_seconds")
