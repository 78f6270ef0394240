"""When a device's credential was revoked."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the column; no device that is there is revoked."""
    op.add_column("devices", sa.Column("revoked_at", sa.Float(), nullable=True))
