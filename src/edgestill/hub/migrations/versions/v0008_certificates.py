"""The key that a device's certificates are for, and when the last of them ends."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0008"
down_revision: Final = "0007"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the columns; no device that is there has a certificate."""
    op.add_column("devices", sa.Column("key", sa.String(length=64), nullable=True))
    op.add_column("devices", sa.Column("certified_until", sa.Float(), nullable=True))
