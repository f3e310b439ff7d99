"""A service without models of its own serves all that the server runs, as every service did until now.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

services = sa.table("services", sa.column("models", sa.JSON))


def upgrade() -> None:
    op.execute(services.update().values(models=[]))


def downgrade() -> None:
    """What a service served was written anew at every start, so there is nothing to restore."""
