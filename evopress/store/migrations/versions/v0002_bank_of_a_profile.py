"""A profile belongs to the bank that made its variants, and a window of a token set to its source document.

The same levels calibrated otherwise are other weights; windows of one document are not independent evidence.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Profiles stored before keep "": what they were calibrated on stands in their trials' numerics."""
    with op.batch_alter_table("evo_profiles") as table:
        table.add_column(sa.Column("bank", sa.String(length=64), nullable=False, server_default=""))
        table.drop_constraint("uq_evo_profiles_model_id_digest", type_="unique")
        table.create_unique_constraint("uq_evo_profiles_model_id_digest_bank", ["model_id", "digest", "bank"])

    with op.batch_alter_table("evo_token_sets") as table:
        table.alter_column("tokenizer", new_column_name="model", existing_type=sa.Text(), existing_nullable=False)
        table.add_column(sa.Column("origins", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Back to one row a profile. Fails where a profile has several banks by now, and then changes nothing."""
    with op.batch_alter_table("evo_token_sets") as table:
        table.drop_column("origins")
        table.alter_column("model", new_column_name="tokenizer", existing_type=sa.Text(), existing_nullable=False)
    with op.batch_alter_table("evo_profiles") as table:
        table.drop_constraint("uq_evo_profiles_model_id_digest_bank", type_="unique")
        table.create_unique_constraint("uq_evo_profiles_model_id_digest", ["model_id", "digest"])
        table.drop_column("bank")
