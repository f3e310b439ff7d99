"""The tables. Instants are seconds since the epoch (UTC); flexible parts are JSON. Portable between SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, false, true

metadata = MetaData()

services = Table(
    "services", metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("models", JSON, nullable=False),
    Column("owner", String, nullable=False),
    Column("created_at", Float, nullable=False),
)  # fmt: skip

api_keys = Table(
    "api_keys", metadata,
    Column("public_id", String, primary_key=True),
    Column("service_id", ForeignKey("services.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("last4", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("role", String, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("last_used_at", Float),
    Column("limits", JSON),
)  # fmt: skip

jobs = Table(
    "jobs", metadata,
    Column("id", String, primary_key=True),
    Column("service_id", ForeignKey("services.id"), nullable=False),
    Column("key_id", ForeignKey("api_keys.public_id"), nullable=False),
    Column("status", String, nullable=False),
    Column("model", String, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("steps_run", Integer),
    Column("queue_seconds", Float),
    Column("inference_seconds", Float),
    Column("error", String),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("n", Integer, nullable=False, server_default="1"),
    Column("attached", Boolean, nullable=False, server_default=false()),
    Column("keep", Boolean, nullable=False, server_default=true()),
    Column("with_prompt", Boolean, nullable=False, server_default=true()),
    Column("preview_every", Integer, nullable=False, server_default="0"),
    Column("webhook_url", String, nullable=False, server_default=""),
    Column("start_by", Float),
    Column("fingerprint", String, nullable=False, server_default=""),
    Column("home", String, nullable=False, server_default=""),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("started_at", Float),
    Column("notes", JSON),
    Column("error_name", String),
    Column("error_status", Integer),
    Column("retry_after", Float),
    Column("cancel_asked", Boolean, nullable=False, server_default=false()),
    Column("lease_owner", String),
    Column("lease_until", Float),
)  # fmt: skip

# Init pictures of jobs that have not ended, as packed raw RGB: in the database, so that they come and go with their job in
# one transaction and every gateway finds them.
inputs = Table(
    "inputs", metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)  # fmt: skip

idempotency = Table(
    "idempotency", metadata,
    Column("key_id", ForeignKey("api_keys.public_id"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("body_hash", String, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Float, nullable=False),
)  # fmt: skip

# What was used, for ever: a job may be deleted, its line stays.
usage = Table(
    "usage", metadata,
    Column("job_id", String, primary_key=True),
    Column("service_id", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("model", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("pictures", Integer, nullable=False),
    Column("pixel_steps", BigInteger, nullable=False),
    Column("inference_seconds", Float, nullable=False),
)  # fmt: skip

# A GCRA a row: the instant at which the whole allowance of a key is there again.
allowances = Table(
    "allowances", metadata,
    Column("key_id", ForeignKey("api_keys.public_id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("full_at", Float, nullable=False),
)  # fmt: skip

gateways = Table(
    "gateways", metadata,
    Column("id", String, primary_key=True),
    Column("seen_at", Float, nullable=False),
)  # fmt: skip

pictures = Table(
    "pictures", metadata,
    Column("id", String, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("service_id", ForeignKey("services.id"), nullable=False),
    Column("key", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("place", Integer, nullable=False, server_default="0"),
    Column("model", String, nullable=False, server_default=""),
    Column("key_id", String, nullable=False, server_default=""),
    Column("seed", BigInteger, nullable=False, server_default="0"),
    Column("words", String, nullable=False, server_default=""),
    Column("starred", Boolean, nullable=False, server_default=false()),
)  # fmt: skip

# Single values that belong to the operator: the hash of the password, that of the one-time link.
facts = Table("facts", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False))

sessions = Table(
    "sessions", metadata,
    Column("id", String, primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    Column("csrf", String, nullable=False),
    Column("agent", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)  # fmt: skip

requests = Table(
    "requests", metadata,
    Column("id", String, primary_key=True),
    Column("at", Float, nullable=False),
    Column("service_id", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("method", String, nullable=False),
    Column("route", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("ms", Float, nullable=False),
    Column("model", String, nullable=False),
    Column("job_id", String),
    Column("error", String),
    Column("body", JSON),
)  # fmt: skip

acceptances = Table(
    "acceptances", metadata,
    Column("model", String, primary_key=True),
    Column("licence", String, primary_key=True),
    Column("version", String, primary_key=True),
    Column("accepted_at", Float, nullable=False),
)  # fmt: skip

outbox = Table(
    "outbox", metadata,
    Column("id", String, primary_key=True),
    Column("job_id", String, nullable=False),  # no foreign key: a job may be deleted before its news arrives
    Column("service_id", String, nullable=False),
    Column("url", String, nullable=False),
    Column("event", String, nullable=False),
    Column("body", String, nullable=False),  # as it is sent: every retry sends the same bytes
    Column("created_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("lease_until", Float),
    Column("delivered_at", Float),
    Column("failed_at", Float),
    Column("last_status", Integer),
    Column("last_error", String),
)  # fmt: skip

webhook_secrets = Table(
    "webhook_secrets", metadata,
    Column("id", String, primary_key=True),
    Column("service_id", ForeignKey("services.id"), nullable=False),
    Column("secret", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("retired_at", Float),
)  # fmt: skip

Index("jobs_by_service", jobs.c.service_id, jobs.c.created_at)
Index("jobs_by_status", jobs.c.status, jobs.c.created_at)
Index("jobs_by_fingerprint", jobs.c.fingerprint)
Index("jobs_by_key", jobs.c.key_id, jobs.c.status)
Index("idempotency_by_job", idempotency.c.job_id)
Index("usage_by_key", usage.c.key_id, usage.c.at)
Index("pictures_by_service", pictures.c.service_id, pictures.c.created_at, pictures.c.id)
# a search for words reads this index alone, newest first, and no row that does not match; words are short enough for PostgreSQL's
Index("pictures_by_words", pictures.c.service_id, pictures.c.created_at, pictures.c.id, pictures.c.words)
Index("pictures_by_seed", pictures.c.service_id, pictures.c.seed)
Index("requests_by_service", requests.c.service_id, requests.c.at, requests.c.id)
Index("sessions_by_hash", sessions.c.hash, unique=True)
Index("pictures_by_job", pictures.c.job_id)
Index("outbox_by_state", outbox.c.delivered_at, outbox.c.failed_at, outbox.c.next_at)
Index("outbox_by_age", outbox.c.created_at)
# where retired_at is null: migration 0005 says so, and not this line, since to name PostgreSQL here would import it at every start on SQLite
Index("one_present_secret", webhook_secrets.c.service_id, unique=True)
