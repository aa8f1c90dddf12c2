"""A token set names what it was drawn from, so that a later search can tell whether it saw what is held out now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Of token sets stored before it is not known, until the same one is made again."""
    with op.batch_alter_table("evo_token_sets") as table:
        table.add_column(sa.Column("texts", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Remove it."""
    with op.batch_alter_table("evo_token_sets") as table:
        table.drop_column("texts")
