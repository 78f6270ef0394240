"""What a published bundle's own statistics are of: backbone, classes and features.

Bundles that were published before are looked at when the hub starts.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the columns, empty."""
    op.add_column("targets", sa.Column("backbone", sa.String(length=80), nullable=True))
    op.add_column("targets", sa.Column("classes", sa.Integer(), nullable=True))
    op.add_column("targets", sa.Column("features", sa.Integer(), nullable=True))
    op.create_index(op.f("ix_targets_backbone"), "targets", ["backbone"], unique=False)
