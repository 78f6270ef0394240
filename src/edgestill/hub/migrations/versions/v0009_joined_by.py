"""An index of devices by the join token that they came by: lists of tokens count them."""

from __future__ import annotations

from typing import Final

from alembic import op

revision: Final = "0009"
down_revision: Final = "0008"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the index."""
    op.create_index(op.f("ix_devices_join_token"), "devices", ["join_token"], unique=False)
