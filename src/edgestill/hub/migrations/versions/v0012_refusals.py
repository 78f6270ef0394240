"""What devices sent as sums and was not taken, by device and reason."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0012"
down_revision: Final = "0011"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "refusals",
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(100), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_refusals_device_id")),
        sa.PrimaryKeyConstraint("device_id", "reason", name=op.f("pk_refusals")),
    )
