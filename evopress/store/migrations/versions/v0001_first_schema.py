"""First schema: models, profiles, trials, studies, runs, results, claims and reported numbers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "evo_claims",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("heartbeat", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_evo_claims")),
    )
    op.create_index(op.f("ix_evo_claims_host_pid"), "evo_claims", ["host", "pid"], unique=False)
    op.create_table(
        "evo_layouts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("sites", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_layouts")),
        sa.UniqueConstraint("digest", name=op.f("uq_evo_layouts_digest")),
    )
    op.create_table(
        "evo_levels",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_levels")),
        sa.UniqueConstraint("text", name=op.f("uq_evo_levels_text")),
    )
    op.create_table(
        "evo_models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=128), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_models")),
        sa.UniqueConstraint("digest", name=op.f("uq_evo_models_digest")),
    )
    op.create_table(
        "evo_reference_rows",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint("state = 'reported'", name=op.f("ck_evo_reference_rows_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_reference_rows")),
        sa.UniqueConstraint(
            "source", "model", "method", "budget", "metric", name=op.f("uq_evo_reference_rows_source_model_method_budget_metric")
        ),
    )
    op.create_table(
        "evo_slices",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("token_set", sa.String(length=64), nullable=False),
        sa.Column("documents", sa.JSON(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_slices")),
        sa.UniqueConstraint("digest", name=op.f("uq_evo_slices_digest")),
    )
    op.create_index(op.f("ix_evo_slices_token_set"), "evo_slices", ["token_set"], unique=False)
    op.create_table(
        "evo_studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_evo_studies_name")),
    )
    op.create_table(
        "evo_token_sets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("documents", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("tokenizer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_token_sets")),
        sa.UniqueConstraint("digest", "role", name=op.f("uq_evo_token_sets_digest_role")),
    )
    op.create_table(
        "evo_bank_entries",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("calibration", sa.String(length=64), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("level_id", sa.Integer(), nullable=False),
        sa.Column("relative_error", sa.Float(precision=53), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["level_id"], ["evo_levels.id"], name=op.f("fk_evo_bank_entries_level_id")),
        sa.ForeignKeyConstraint(["model_id"], ["evo_models.id"], name=op.f("fk_evo_bank_entries_model_id")),
        sa.PrimaryKeyConstraint("model_id", "calibration", "site", "level_id", name=op.f("pk_evo_bank_entries")),
    )
    op.create_table(
        "evo_profiles",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("layout_id", sa.Integer(), nullable=False),
        sa.Column("levels", sa.JSON(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("bits", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["layout_id"], ["evo_layouts.id"], name=op.f("fk_evo_profiles_layout_id")),
        sa.ForeignKeyConstraint(["model_id"], ["evo_models.id"], name=op.f("fk_evo_profiles_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_profiles")),
        sa.UniqueConstraint("model_id", "digest", name=op.f("uq_evo_profiles_model_id_digest")),
    )
    op.create_index(op.f("ix_evo_profiles_digest"), "evo_profiles", ["digest"], unique=False)
    op.create_table(
        "evo_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("started", sa.Float(precision=53), nullable=False),
        sa.Column("finished", sa.Float(precision=53), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["evo_studies.id"], name=op.f("fk_evo_runs_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_runs")),
    )
    op.create_index(op.f("ix_evo_runs_study_id"), "evo_runs", ["study_id"], unique=False)
    op.create_table(
        "evo_sites",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("own_params", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["evo_models.id"], name=op.f("fk_evo_sites_model_id")),
        sa.PrimaryKeyConstraint("model_id", "position", name=op.f("pk_evo_sites")),
        sa.UniqueConstraint("model_id", "name", name=op.f("uq_evo_sites_model_id_name")),
    )
    op.create_table(
        "evo_latencies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=True),
        sa.Column("kernel", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("median_seconds", sa.Float(precision=53), nullable=False),
        sa.Column("low_seconds", sa.Float(precision=53), nullable=False),
        sa.Column("high_seconds", sa.Float(precision=53), nullable=False),
        sa.Column("tokens_per_second", sa.Float(precision=53), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint("median_seconds > 0", name=op.f("ck_evo_latencies_median_seconds")),
        sa.ForeignKeyConstraint(["profile_id"], ["evo_profiles.id"], name=op.f("fk_evo_latencies_profile_id")),
        sa.ForeignKeyConstraint(["run_id"], ["evo_runs.id"], name=op.f("fk_evo_latencies_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_latencies")),
    )
    op.create_index(op.f("ix_evo_latencies_profile_id_phase"), "evo_latencies", ["profile_id", "phase"], unique=False)
    op.create_table(
        "evo_results",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("updated", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["profile_id"], ["evo_profiles.id"], name=op.f("fk_evo_results_profile_id")),
        sa.ForeignKeyConstraint(["run_id"], ["evo_runs.id"], name=op.f("fk_evo_results_run_id")),
        sa.ForeignKeyConstraint(["study_id"], ["evo_studies.id"], name=op.f("fk_evo_results_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_results")),
        sa.UniqueConstraint("study_id", "label", name=op.f("uq_evo_results_study_id_label")),
    )
    op.create_index(op.f("ix_evo_results_profile_id"), "evo_results", ["profile_id"], unique=False)
    op.create_table(
        "evo_task_scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.Column("stderr", sa.Float(precision=53), nullable=True),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("shots", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["profile_id"], ["evo_profiles.id"], name=op.f("fk_evo_task_scores_profile_id")),
        sa.ForeignKeyConstraint(["run_id"], ["evo_runs.id"], name=op.f("fk_evo_task_scores_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_task_scores")),
        sa.UniqueConstraint("profile_id", "task", "metric", "filter", "shots", "samples", "version", name="uq_evo_task_scores_identity"),
    )
    op.create_table(
        "evo_trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("slice_id", sa.Integer(), nullable=False),
        sa.Column("fitness", sa.Text(), nullable=False),
        sa.Column("numerics", sa.Text(), nullable=False),
        sa.Column("mean", sa.Float(precision=53), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint("seconds >= 0", name=op.f("ck_evo_trials_seconds")),
        sa.ForeignKeyConstraint(["profile_id"], ["evo_profiles.id"], name=op.f("fk_evo_trials_profile_id")),
        sa.ForeignKeyConstraint(["run_id"], ["evo_runs.id"], name=op.f("fk_evo_trials_run_id")),
        sa.ForeignKeyConstraint(["slice_id"], ["evo_slices.id"], name=op.f("fk_evo_trials_slice_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evo_trials")),
        sa.UniqueConstraint("key", name=op.f("uq_evo_trials_key")),
        sa.UniqueConstraint(
            "profile_id", "slice_id", "fitness", "numerics", name=op.f("uq_evo_trials_profile_id_slice_id_fitness_numerics")
        ),
    )
    op.create_index(op.f("ix_evo_trials_run_id"), "evo_trials", ["run_id"], unique=False)
    op.create_index(op.f("ix_evo_trials_slice_id"), "evo_trials", ["slice_id"], unique=False)
    op.create_table(
        "evo_document_values",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["evo_trials.id"], name=op.f("fk_evo_document_values_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "position", name=op.f("pk_evo_document_values")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "evo_run_trials",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("searcher", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["evo_runs.id"], name=op.f("fk_evo_run_trials_run_id")),
        sa.ForeignKeyConstraint(["study_id"], ["evo_studies.id"], name=op.f("fk_evo_run_trials_study_id")),
        sa.ForeignKeyConstraint(["trial_id"], ["evo_trials.id"], name=op.f("fk_evo_run_trials_trial_id")),
        sa.PrimaryKeyConstraint("study_id", "searcher", "ordinal", "position", name=op.f("pk_evo_run_trials")),
    )
    op.create_index(op.f("ix_evo_run_trials_trial_id"), "evo_run_trials", ["trial_id"], unique=False)


def downgrade() -> None:
    """Drop every table; the indexes go with them."""
    op.drop_table("evo_run_trials")
    op.drop_table("evo_document_values")
    op.drop_table("evo_trials")
    op.drop_table("evo_task_scores")
    op.drop_table("evo_results")
    op.drop_table("evo_latencies")
    op.drop_table("evo_sites")
    op.drop_table("evo_runs")
    op.drop_table("evo_profiles")
    op.drop_table("evo_bank_entries")
    op.drop_table("evo_token_sets")
    op.drop_table("evo_studies")
    op.drop_table("evo_slices")
    op.drop_table("evo_reference_rows")
    op.drop_table("evo_models")
    op.drop_table("evo_levels")
    op.drop_table("evo_layouts")
    op.drop_table("evo_claims")
