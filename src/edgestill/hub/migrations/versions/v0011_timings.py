"""Timing jobs: families of models that devices time in idle hours, and what came of it."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0011"
down_revision: Final = "0010"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Adds the three tables."""
    op.create_table(
        "timings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timings")),
    )
    op.create_table(
        "timed",
        sa.Column("timing_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("times", sa.JSON(), nullable=True),
        sa.Column("heard_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["timing_id"], ["timings.id"], name=op.f("fk_timed_timing_id")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_timed_device_id")),
        sa.PrimaryKeyConstraint("timing_id", "device_id", name=op.f("pk_timed")),
    )
    op.create_index(op.f("ix_timed_device_id"), "timed", ["device_id"], unique=False)
    op.create_table(
        "measuring",
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.String(200), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_measuring_device_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_measuring")),
    )
