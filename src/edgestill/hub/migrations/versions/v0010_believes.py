"""What a device says of the fleet's authority, so that one hands over to the next when all have followed."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0010"
down_revision: Final = "0009"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds two columns."""
    op.add_column("devices", sa.Column("believes", sa.BigInteger(), nullable=True))
    op.add_column("devices", sa.Column("issuer", sa.String(length=64), nullable=True))
