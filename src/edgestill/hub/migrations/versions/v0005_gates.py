"""What a rollout's devices had answered before it: gates on errors and escalations count from there.

Rollouts that are under way have no such gates, so they begin at 0.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0005"
down_revision: Final = "0004"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the columns."""
    for name in ("answers_before", "escalated_before", "errors_before"):
        op.add_column("members", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
