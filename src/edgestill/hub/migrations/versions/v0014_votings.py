"""Voting rounds, and the newest ballot of each device in them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0014"
down_revision: Final = "0013"
branch_labels: Final = None
depends_on: Final = None

_SERIAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "votings",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("classes", sa.Integer(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("hardware_class", sa.String(60), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("closes_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_votings")),
    )
    op.create_index(op.f("ix_votings_state"), "votings", ["state"])
    op.create_table(
        "ballots",
        sa.Column("voting_id", _SERIAL, nullable=False),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("message_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("student", sa.String(16), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["voting_id"], ["votings.id"], name=op.f("fk_ballots_voting_id")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_ballots_device_id")),
        sa.PrimaryKeyConstraint("voting_id", "device_id", name=op.f("pk_ballots")),
    )
    op.create_index(op.f("ix_ballots_device_id"), "ballots", ["device_id"])
