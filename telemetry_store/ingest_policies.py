"""Ingest policies: what each tenant allows of its telemetry."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum

import asyncpg

from meshkit.clock import MICROS_PER_SECOND, from_datetime
from meshkit.db import DATABASE_ERRORS, Connection
from meshkit.errors import Aborted, dependency_unavailable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# Longer than a transaction of the ingest role may last: what was written is seen by then.
_WRITTEN_WITHIN = timedelta(seconds=45)
_COLUMNS = """
    tenant_id, version, update_time, late_window, future_window,
    raw_enabled, raw_retention, dead_letter_retention, limits
"""


class SubjectKind(IntEnum):
    """What is limited; the numbers are those of the contract."""

    TENANT = 1
    DEVICE = 2
    PRINCIPAL = 3
    CONNECTION = 4


@dataclass(frozen=True, slots=True)
class SubjectLimits:
    """Limits of one subject; 0: none.

    Attributes:
        kind: what it is.
        subject: its id; "": each one that has no limits of its own.
        samples_per_second: of all processes together.
        bytes_per_second: likewise.
        streams: open at once.
        inflight_bytes: that wait to be durable at once.
    """

    kind: SubjectKind
    subject: str = ""
    samples_per_second: int = 0
    bytes_per_second: int = 0
    streams: int = 0
    inflight_bytes: int = 0


@dataclass(frozen=True, slots=True)
class IngestPolicyRow:
    """A tenant's policy; what is None is as the installation is set.

    Attributes:
        tenant: whose.
        version: raised by every write; 0: never written.
        update_us: when it was written, microseconds since the epoch; 0: never.
        late_us: how old live telemetry may be, microseconds.
        future_us: how far ahead it may be, microseconds.
        raw_enabled: whether messages are kept as they came.
        raw_retention: for how long.
        dead_letter_retention: how long dead letters are kept.
        limits: each subject once.
    """

    tenant: str
    version: int = 0
    update_us: int = 0
    late_us: int | None = None
    future_us: int | None = None
    raw_enabled: bool | None = None
    raw_retention: timedelta | None = None
    dead_letter_retention: timedelta | None = None
    limits: Sequence[SubjectLimits] = field(default=())


class IngestPolicyStore:
    """Reads and writes policies.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def read(self, tenant: str) -> IngestPolicyRow:
        """Return a tenant's policy, also when it was never written.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            async with self._pool.acquire() as connection:
                return await _read(connection, tenant)
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error

    async def write(self, row: IngestPolicyRow) -> IngestPolicyRow:
        """Write what `read` returned, changed; returns it with its new version and time.

        Raises:
            Aborted: ETAG_MISMATCH, it was written since.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            written = await self._pool.fetchrow(
                f"""
                INSERT INTO telemetry.ingest_policy AS policy
                    (tenant_id, late_window, future_window, raw_enabled, raw_retention,
                     dead_letter_retention, limits)
                VALUES ($1, $3, $4, $5, $6, $7, $8)
                ON CONFLICT (tenant_id) DO UPDATE
                SET late_window = excluded.late_window, future_window = excluded.future_window,
                    raw_enabled = excluded.raw_enabled, raw_retention = excluded.raw_retention,
                    dead_letter_retention = excluded.dead_letter_retention, limits = excluded.limits,
                    version = policy.version + 1, update_time = clock_timestamp()
                WHERE policy.version = $2
                RETURNING {_COLUMNS}
                """,  # noqa: S608 - a constant
                row.tenant,
                row.version,
                _interval(row.late_us),
                _interval(row.future_us),
                row.raw_enabled,
                row.raw_retention,
                row.dead_letter_retention,
                json.dumps([_to_json(limits) for limits in row.limits]),
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        if written is None:
            raise etag_mismatch()
        return _from_row(written)

    async def changed_since(self, update_us: int) -> list[IngestPolicyRow]:
        """Return all policies written since about a moment; 0: all.

        Some that were written before it come again, since writes become visible in any order.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: PostgreSQL is away.
        """
        rows = await self._pool.fetch(
            f"""
            SELECT {_COLUMNS}
            FROM telemetry.ingest_policy
            WHERE update_time > timestamptz 'epoch' + $1 * interval '1 microsecond' - $2::interval
            """,  # noqa: S608 - a constant
            update_us,
            _WRITTEN_WITHIN,
        )
        return [_from_row(row) for row in rows]


def etag_mismatch() -> Aborted:
    """Return the error for a policy that somebody else has written."""
    return Aborted(
        "the ingest policy was changed by somebody else; read it again",
        reason=ErrorReason.ERROR_REASON_ETAG_MISMATCH,
    )


async def _read(connection: Connection, tenant: str) -> IngestPolicyRow:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM telemetry.ingest_policy WHERE tenant_id = $1",  # noqa: S608 - a constant
        tenant,
    )
    return IngestPolicyRow(tenant) if row is None else _from_row(row)


def _from_row(row: asyncpg.Record) -> IngestPolicyRow:
    return IngestPolicyRow(
        tenant=row["tenant_id"],
        version=row["version"],
        update_us=from_datetime(row["update_time"]),
        late_us=_micros(row["late_window"]),
        future_us=_micros(row["future_window"]),
        raw_enabled=row["raw_enabled"],
        raw_retention=row["raw_retention"],
        dead_letter_retention=row["dead_letter_retention"],
        limits=tuple(_from_json(limits) for limits in json.loads(row["limits"])),
    )


def _to_json(limits: SubjectLimits) -> dict[str, object]:
    amounts = {
        name: getattr(limits, name)
        for name in ("samples_per_second", "bytes_per_second", "streams", "inflight_bytes")
    }
    return {
        "subject_kind": limits.kind.value,
        "subject": limits.subject,
        **{name: amount for name, amount in amounts.items() if amount},
    }


def _from_json(written: dict[str, object]) -> SubjectLimits:
    return SubjectLimits(SubjectKind(written.pop("subject_kind")), **written)  # type: ignore[arg-type] # As written by _to_json.


def _micros(interval: timedelta | None) -> int | None:
    return None if interval is None else interval // timedelta(microseconds=1)


def _interval(micros: int | None) -> timedelta | None:
    return None if micros is None else timedelta(seconds=micros / MICROS_PER_SECOND)
