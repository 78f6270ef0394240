"""The place of a statistics message among those of its device."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the column; messages that are there have no place, and any numbered one replaces them."""
    op.add_column("statistics", sa.Column("sequence", sa.BigInteger(), nullable=True))
