"""The dashboard: sessions, the operator's password, the log of requests, and what pictures are searched by.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

PICTURES: list[sa.Column] = [
    sa.Column("model", sa.String, nullable=False, server_default=""),
    sa.Column("key_id", sa.String, nullable=False, server_default=""),
    sa.Column("seed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("words", sa.String, nullable=False, server_default=""),
    sa.Column("starred", sa.Boolean, nullable=False, server_default=sa.false()),
]
INDEXES = {
    "pictures_by_service": ("pictures", ["service_id", "created_at", "id"]), "pictures_by_words": ("pictures", ["service_id", "created_at", "id", "words"]),
    "pictures_by_seed": ("pictures", ["service_id", "seed"]), "requests_by_service": ("requests", ["service_id", "at", "id"]),
}  # fmt: skip


def upgrade() -> None:
    for column in PICTURES:
        op.add_column("pictures", column)
    op.create_table("facts", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False))
    op.create_table(
        "sessions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("csrf", sa.String, nullable=False),
        sa.Column("agent", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_seen_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("service_id", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("ms", sa.Float, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("job_id", sa.String),
        sa.Column("error", sa.String),
        sa.Column("body", sa.JSON),
    )
    op.drop_index("pictures_by_service", "pictures")
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns)
    op.create_index("sessions_by_hash", "sessions", ["hash"], unique=True)


def downgrade() -> None:
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.create_index("pictures_by_service", "pictures", ["service_id", "created_at"])
    for table in ("requests", "sessions", "facts"):
        op.drop_table(table)
    with op.batch_alter_table("pictures") as batch:
        for column in PICTURES:
            batch.drop_column(column.name)
