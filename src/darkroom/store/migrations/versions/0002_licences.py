"""Accepted licences.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "acceptances",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("licence", sa.String, primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("accepted_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("acceptances")
