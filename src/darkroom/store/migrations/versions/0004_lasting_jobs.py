"""Jobs that last: leases, init pictures, idempotency, limits of keys, the ledger of what was used.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

JOBS: list[sa.Column] = [
    sa.Column("n", sa.Integer, nullable=False, server_default="1"),
    sa.Column("attached", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("keep", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("with_prompt", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("preview_every", sa.Integer, nullable=False, server_default="0"),
    sa.Column("webhook_url", sa.String, nullable=False, server_default=""),
    sa.Column("start_by", sa.Float),
    sa.Column("fingerprint", sa.String, nullable=False, server_default=""),
    sa.Column("home", sa.String, nullable=False, server_default=""),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("started_at", sa.Float),
    sa.Column("notes", sa.JSON),
    sa.Column("error_name", sa.String),
    sa.Column("error_status", sa.Integer),
    sa.Column("retry_after", sa.Float),
    sa.Column("cancel_asked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("lease_owner", sa.String),
    sa.Column("lease_until", sa.Float),
]
INDEXES = {
    "jobs_by_status": ("jobs", ["status", "created_at"]), "jobs_by_fingerprint": ("jobs", ["fingerprint"]), "jobs_by_key": ("jobs", ["key_id", "status"]),
    "idempotency_by_job": ("idempotency", ["job_id"]), "usage_by_key": ("usage", ["key_id", "at"]),
}  # fmt: skip


def upgrade() -> None:
    for column in JOBS:
        op.add_column("jobs", column)
    op.add_column("api_keys", sa.Column("limits", sa.JSON))
    op.add_column("pictures", sa.Column("place", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "inputs",
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("key_id", sa.String, sa.ForeignKey("api_keys.public_id"), primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("body_hash", sa.String, nullable=False),
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("service_id", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("pictures", sa.Integer, nullable=False),
        sa.Column("pixel_steps", sa.BigInteger, nullable=False),
        sa.Column("inference_seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "allowances",
        sa.Column("key_id", sa.String, sa.ForeignKey("api_keys.public_id"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("full_at", sa.Float, nullable=False),
    )
    op.create_table("gateways", sa.Column("id", sa.String, primary_key=True), sa.Column("seen_at", sa.Float, nullable=False))
    op.drop_index("jobs_by_status", "jobs")
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.create_index("jobs_by_status", "jobs", ["status"])
    for table in ("gateways", "allowances", "usage", "idempotency", "inputs"):
        op.drop_table(table)
    for name, columns in {"pictures": ["place"], "api_keys": ["limits"], "jobs": [column.name for column in JOBS]}.items():
        with op.batch_alter_table(name) as batch:
            for column in columns:
                batch.drop_column(column)
