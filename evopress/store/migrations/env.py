"""Alembic's entry: runs the steps on the connection of the caller, inside its transaction. Not a place for connecting or logging."""

from __future__ import annotations

from alembic import context

from evopress.store.schema import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    # SQLite cannot alter constraints in place: batch mode rewrites the table, inside the same transaction.
    render_as_batch=True,
    transactional_ddl=True,
    include_name=lambda name, kind, _parents: kind != "table" or (name or "").startswith("evo_"),
)
with context.begin_transaction():
    context.run_migrations()
