"""What the hub remembers, as SQLAlchemy Core tables.

- Secrets (join tokens, device credentials) are kept as SHA-256 digests only.
- Times are seconds since 1970 by the hub's clock, except where a column says it is the device's.
- What a device may send twice has a unique key of the device and the id it made, so that it counts once.
- Column types are those that SQLite and PostgreSQL both have. The schema changes through `migrations` alone; a test
  holds these tables and the migrations together.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column of type INTEGER.
_SERIAL: Final = BigInteger().with_variant(Integer, "sqlite")
_ID: Final = String(64)
_RELEASE: Final = String(100)

join_tokens: Final = Table(
    "join_tokens",
    METADATA,
    Column("digest", _ID, primary_key=True),
    Column("uses_left", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
)

devices: Final = Table(
    "devices",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("hardware_class", String(60), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("credential", _ID, nullable=False, unique=True),
    Column("join_token", _ID, nullable=False, index=True),
    Column("enrolled_at", Float, nullable=False),
    Column("last_seen", Float),
    # When the operator took its credential back; nothing it says is heard after that.
    Column("revoked_at", Float),
    # The key that its certificates are for (SHA-256 of the public half), and when the last of them ends; null while it has none.
    Column("key", _ID),
    Column("certified_until", Float),
    # What it says of its authority: the place of the newest word that it goes by, and who has issued its certificate (hub.authority).
    Column("believes", BigInteger),
    Column("issuer", _ID),
    # What it is told to run.
    Column("counter", BigInteger, nullable=False, default=0),
    Column("target", String(200)),
    Column("assigned_at", Float),
    # What it says it runs, and the step it reported last; `..._at` are times of the device's clock.
    Column("running", _RELEASE, nullable=False, default=""),
    Column("running_at", Float, nullable=False, default=0.0),
    Column("state", String(20), nullable=False, default=""),
    Column("state_release", _RELEASE, nullable=False, default=""),
    Column("state_at", Float, nullable=False, default=0.0),
    Column("reason", String(500), nullable=False, default=""),
    Column("samples", Integer, nullable=False, default=0),
)

targets: Final = Table(
    "targets",
    METADATA,
    Column("path", String(200), primary_key=True),
    Column("release", _RELEASE, nullable=False, index=True),
    Column("hardware_class", String(60), nullable=False),
    Column("digest", _ID, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("listed", Boolean, nullable=False),
    # What its `reference.stats` says: null until the archive was looked at, an empty backbone where it brings none.
    Column("backbone", String(80), index=True),
    Column("classes", Integer),
    Column("features", Integer),
    Column("published_at", Float, nullable=False),
)

rollouts: Final = Table(
    "rollouts",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("release", _RELEASE, nullable=False),
    Column("stages", JSON, nullable=False),
    Column("gates", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("state", String(20), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("reason", String(500), nullable=False, default=""),
    # The last stage at which an operator has accepted what gates wait for.
    Column("accepted", Integer, nullable=False, default=-1, server_default="-1"),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
)

members: Final = Table(
    "members",
    METADATA,
    Column("rollout_id", ForeignKey("rollouts.id"), primary_key=True),
    Column("device_id", ForeignKey("devices.id"), primary_key=True, index=True),
    Column("target", String(200), nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", String(500), nullable=False, default=""),
    Column("assigned_at", Float, nullable=False),
    Column("heard_at", Float),
    Column("excused", String(20), nullable=False, default=""),
    # Sums of `health` before the rollout was resumed, or before it began on this device.
    Column("audits_before", BigInteger, nullable=False, default=0),
    Column("agreed_before", BigInteger, nullable=False, default=0),
    Column("answers_before", BigInteger, nullable=False, default=0, server_default="0"),
    Column("escalated_before", BigInteger, nullable=False, default=0, server_default="0"),
    Column("errors_before", BigInteger, nullable=False, default=0, server_default="0"),
    Column("returned", Boolean, nullable=False, default=False),
)

reports: Final = Table(
    "reports",
    METADATA,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("id", _ID, primary_key=True),
    Column("at", Float, nullable=False),
    Column("received_at", Float, nullable=False, index=True),
    Column("bundle", String(80), nullable=False),
    Column("release", _RELEASE, nullable=False),
    Column("state", String(20)),
    Column("reason", String(500), nullable=False, default=""),
)

health: Final = Table(
    "health",
    METADATA,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("release", _RELEASE, primary_key=True),
    # Sums over all health reports of this device about this release.
    Column("answers", BigInteger, nullable=False),
    Column("escalated", BigInteger, nullable=False),
    Column("audits", BigInteger, nullable=False),
    Column("agreed", BigInteger, nullable=False),
    Column("audits_lost", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    # Figures of the report that is newest by the device's clock.
    Column("latest_at", Float, nullable=False),
    Column("latency_p50", Float, nullable=False),
    Column("latency_p95", Float, nullable=False),
    Column("drift", String(10), nullable=False),
    Column("confidence", Float, nullable=False),
    Column("leverage", Float, nullable=False),
)

operators: Final = Table(
    "operators",
    METADATA,
    Column("name", _ID, primary_key=True),
    Column("role", String(20), nullable=False),
    # SHA-256 of the token.
    Column("token", _ID, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)

# Triggers refuse every change and removal; see the migration that makes it.
audit_log: Final = Table(
    "audit_log",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("who", String(200), nullable=False),
    Column("what", String(100), nullable=False),
    Column("about", JSON, nullable=False),
    Column("seal", _ID, nullable=False),
)

samples: Final = Table(
    "samples",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False, index=True),
    Column("received_at", Float, nullable=False),
    Column("purpose", String(20), nullable=False),
    # The request's id and the row within it; null where the request had no id, and nothing can be told to be a repeat.
    Column("request_id", String(200)),
    Column("position", Integer, nullable=False),
    Column("datatype", String(8), nullable=False),
    Column("shape", JSON, nullable=False),
    Column("input", LargeBinary, nullable=False),
    Column("logits", LargeBinary, nullable=False),
    UniqueConstraint("device_id", "request_id", "position"),
)

statistics: Final = Table(
    "statistics",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("message_id", _ID, nullable=False),
    # Its place among the device's messages; null from a device that does not number them.
    Column("sequence", BigInteger),
    Column("received_at", Float, nullable=False),
    Column("backbone", String(80), nullable=False, index=True),
    Column("window", BigInteger, nullable=False),
    Column("n", Float, nullable=False),
    Column("classes", Integer, nullable=False),
    Column("features", Integer, nullable=False),
    # Null once a newer message of the same device and window took its place.
    Column("body", LargeBinary),
    UniqueConstraint("device_id", "message_id"),
)

# Sums and ballots that were not taken: how many, by device and reason (the hub's own words; see `hub.refusals`).
refusals: Final = Table(
    "refusals",
    METADATA,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("reason", String(100), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_at", Float, nullable=False),
)

# What other updaters than ours are given, by the SHA-256 of the archive in it: the one with the largest id; the image itself lies among the blobs.
images: Final = Table(
    "images",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("archive", _ID, nullable=False, index=True),
    Column("digest", _ID, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("sha1", String(40), nullable=False),
    Column("md5", String(32), nullable=False),
    Column("added_at", Float, nullable=False),
)

# Devices that ask by hawkBit's interface: the last action they were given, and what came of it (see `hub.ddi`).
controllers: Final = Table(
    "controllers",
    METADATA,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    # The assignment's counter; 0 before the first.
    Column("action", BigInteger, nullable=False, default=0),
    Column("target", String(200), nullable=False, default=""),
    Column("outcome", String(20), nullable=False, default=""),
    # Whether it has said that the image is written.
    Column("staged", Boolean, nullable=False, default=False),
    # What it said of errors on the way.
    Column("note", String(500), nullable=False, default=""),
    # What it says of itself; null until it does.
    Column("attributes", JSON),
)

# Timing jobs: a family of models that some devices time in idle hours (see `hub.timings`).
timings: Final = Table(
    "timings",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("target", String(200), nullable=False),
    # SHA-256 of the archive, which stays among the blobs when it is retired.
    Column("digest", _ID, nullable=False),
    # In the archive; null of a job that an earlier version of the hub began.
    Column("models", Integer),
    Column("labels", JSON, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", String(500), nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
)

# The devices of a job, and what each has said.
timed: Final = Table(
    "timed",
    METADATA,
    Column("timing_id", ForeignKey("timings.id"), primary_key=True),
    Column("device_id", ForeignKey("devices.id"), primary_key=True, index=True),
    # By which the device knows the job.
    Column("counter", BigInteger, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", String(500), nullable=False, default=""),
    # `core.timing.ModelTime` as JSON, in the order of their places; null until it has measured.
    Column("times", JSON),
    Column("heard_at", Float),
)

# What each device is told to time now; a row stays, because its counter must only grow.
measuring: Final = Table(
    "measuring",
    METADATA,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("counter", BigInteger, nullable=False),
    # The name on the list; null while there is nothing to time.
    Column("target", String(200)),
)

# Voting rounds: a set of samples that some devices vote on while it is open (see `hub.votings`).
votings: Final = Table(
    "votings",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("target", String(200), nullable=False),
    # SHA-256 of the archive, which stays among the blobs when it is retired.
    Column("digest", _ID, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("classes", Integer, nullable=False),
    # Whose turn it is: devices that carry these, and of this hardware class; empty for all.
    Column("labels", JSON, nullable=False),
    Column("hardware_class", String(60), nullable=False),
    Column("state", String(20), nullable=False, index=True),
    Column("reason", String(500), nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("closes_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
)

# The newest ballot of each device in a round.
ballots: Final = Table(
    "ballots",
    METADATA,
    Column("voting_id", ForeignKey("votings.id"), primary_key=True),
    Column("device_id", ForeignKey("devices.id"), primary_key=True, index=True),
    Column("message_id", _ID, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False),
    # Which network voted, and on how many of the samples.
    Column("student", String(16), nullable=False),
    Column("votes", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
