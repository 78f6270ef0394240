"""The first schema."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """Makes every table."""
    op.create_table(
        "devices",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("hardware_class", sa.String(length=60), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("credential", sa.String(length=64), nullable=False),
        sa.Column("join_token", sa.String(length=64), nullable=False),
        sa.Column("enrolled_at", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=True),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=True),
        sa.Column("assigned_at", sa.Float(), nullable=True),
        sa.Column("running", sa.String(length=100), nullable=False),
        sa.Column("running_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("state_release", sa.String(length=100), nullable=False),
        sa.Column("state_at", sa.Float(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_devices")),
        sa.UniqueConstraint("credential", name=op.f("uq_devices_credential")),
    )
    op.create_table(
        "join_tokens",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_join_tokens")),
    )
    op.create_table(
        "rollouts",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("release", sa.String(length=100), nullable=False),
        sa.Column("stages", sa.JSON(), nullable=False),
        sa.Column("gates", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_table(
        "targets",
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("release", sa.String(length=100), nullable=False),
        sa.Column("hardware_class", sa.String(length=60), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.Column("published_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_targets")),
    )
    op.create_index(op.f("ix_targets_release"), "targets", ["release"], unique=False)
    op.create_table(
        "health",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("release", sa.String(length=100), nullable=False),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        sa.Column("escalated", sa.BigInteger(), nullable=False),
        sa.Column("audits", sa.BigInteger(), nullable=False),
        sa.Column("agreed", sa.BigInteger(), nullable=False),
        sa.Column("audits_lost", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("latest_at", sa.Float(), nullable=False),
        sa.Column("latency_p50", sa.Float(), nullable=False),
        sa.Column("latency_p95", sa.Float(), nullable=False),
        sa.Column("drift", sa.String(length=10), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("leverage", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_health_device_id")),
        sa.PrimaryKeyConstraint("device_id", "release", name=op.f("pk_health")),
    )
    op.create_table(
        "members",
        sa.Column("rollout_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("assigned_at", sa.Float(), nullable=False),
        sa.Column("heard_at", sa.Float(), nullable=True),
        sa.Column("excused", sa.String(length=20), nullable=False),
        sa.Column("audits_before", sa.BigInteger(), nullable=False),
        sa.Column("agreed_before", sa.BigInteger(), nullable=False),
        sa.Column("returned", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_members_device_id")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=op.f("fk_members_rollout_id")),
        sa.PrimaryKeyConstraint("rollout_id", "device_id", name=op.f("pk_members")),
    )
    op.create_index(op.f("ix_members_device_id"), "members", ["device_id"], unique=False)
    op.create_table(
        "reports",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("bundle", sa.String(length=80), nullable=False),
        sa.Column("release", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_reports_device_id")),
        sa.PrimaryKeyConstraint("device_id", "id", name=op.f("pk_reports")),
    )
    op.create_index(op.f("ix_reports_received_at"), "reports", ["received_at"], unique=False)
    op.create_table(
        "samples",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("purpose", sa.String(length=20), nullable=False),
        sa.Column("request_id", sa.String(length=200), nullable=True),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("datatype", sa.String(length=8), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("input", sa.LargeBinary(), nullable=False),
        sa.Column("logits", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_samples_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_samples")),
        sa.UniqueConstraint("device_id", "request_id", "position", name=op.f("uq_samples_device_id")),
    )
    op.create_index(op.f("ix_samples_device_id"), "samples", ["device_id"], unique=False)
    op.create_table(
        "statistics",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("backbone", sa.String(length=80), nullable=False),
        sa.Column("window", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.Float(), nullable=False),
        sa.Column("classes", sa.Integer(), nullable=False),
        sa.Column("features", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_statistics_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_statistics")),
        sa.UniqueConstraint("device_id", "message_id", name=op.f("uq_statistics_device_id")),
    )
    op.create_index(op.f("ix_statistics_backbone"), "statistics", ["backbone"], unique=False)
