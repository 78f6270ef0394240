"""What a rollout's devices had answered before it, and the stage that an operator has accepted as it is.

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
    op.add_column("rollouts", sa.Column("accepted", sa.Integer(), server_default="-1", nullable=False))
