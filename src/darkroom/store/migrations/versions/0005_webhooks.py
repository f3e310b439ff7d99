"""The outbox of webhooks, and the secrets that sign them.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("service_id", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("body", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
        sa.Column("lease_until", sa.Float),
        sa.Column("delivered_at", sa.Float),
        sa.Column("failed_at", sa.Float),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.String),
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("service_id", sa.String, sa.ForeignKey("services.id"), nullable=False),
        sa.Column("secret", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("retired_at", sa.Float),
    )
    op.create_index("outbox_by_state", "outbox", ["delivered_at", "failed_at", "next_at"])
    op.create_index("outbox_by_age", "outbox", ["created_at"])
    present = sa.text("retired_at IS NULL")
    op.create_index("one_present_secret", "webhook_secrets", ["service_id"], unique=True, sqlite_where=present, postgresql_where=present)


def downgrade() -> None:
    for table in ("webhook_secrets", "outbox"):
        op.drop_table(table)
