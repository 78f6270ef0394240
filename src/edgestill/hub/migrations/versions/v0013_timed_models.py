"""How many models the archive of a timing job has; unknown of jobs that were begun before."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0013"
down_revision: Final = "0012"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds a column."""
    op.add_column("timings", sa.Column("models", sa.Integer(), nullable=True))
