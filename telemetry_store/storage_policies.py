"""Storage policies: how long each tenant keeps what."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import asyncpg

from meshkit.clock import from_datetime
from meshkit.db import DATABASE_ERRORS, Connection
from meshkit.errors import Aborted, FieldViolation, InvalidArgument, dependency_unavailable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# How long something is kept, or after what time something happens to it.
AGES = ("archive_after", "delete_after", "minute_rollups_kept", "hour_rollups_kept", "day_rollups_kept")
_ROLLUPS = AGES[2:]
_COLUMNS = f"tenant_id, version, update_time, {', '.join(AGES)}"


@dataclass(frozen=True, slots=True)
class StoragePolicyRow:
    """A tenant's policy; what is None is as the installation is set.

    Attributes:
        tenant: whose.
        version: raised by every write; 0: never written.
        update_us: when it was written, microseconds since the epoch; 0: never.
        archive_after: samples of this age go to the archive.
        delete_after: samples and events of this age are deleted.
        minute_rollups_kept: for so long.
        hour_rollups_kept: for so long.
        day_rollups_kept: for so long.
    """

    tenant: str
    version: int = 0
    update_us: int = 0
    archive_after: timedelta | None = None
    delete_after: timedelta | None = None
    minute_rollups_kept: timedelta | None = None
    hour_rollups_kept: timedelta | None = None
    day_rollups_kept: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long something is kept, of a tenant or as the installation is set.

    Attributes:
        archive_after: samples of this age go to the archive; None: there is none, or nothing goes there.
        delete_after: samples and events of this age are deleted; None: never.
        minute_rollups_kept: None: for ever.
        hour_rollups_kept: None: for ever.
        day_rollups_kept: None: for ever.
    """

    archive_after: timedelta | None = None
    delete_after: timedelta | None = None
    minute_rollups_kept: timedelta | None = None
    hour_rollups_kept: timedelta | None = None
    day_rollups_kept: timedelta | None = None

    @property
    def archives_first(self) -> bool:
        """Say whether samples are archived before they are deleted: then they are deleted there, not here."""
        return self.archive_after is not None and (
            self.delete_after is None or self.archive_after < self.delete_after
        )


def retention_of(row: StoragePolicyRow, installation: Retention, *, has_archive: bool) -> Retention:
    """Return how long a tenant keeps what.

    Args:
        row: its policy.
        installation: what holds where the policy says nothing.
        has_archive: there is an archive to go to.
    """
    said = {age: getattr(row, age) for age in AGES if getattr(row, age) is not None}
    retention = replace(installation, **said)
    return retention if has_archive else replace(retention, archive_after=None)


def keep_from(kept: timedelta, now: datetime) -> date:
    """Return the first UTC day of which something is kept: days go as a whole, and can be told before.

    Args:
        kept: how long.
        now: the present.
    """
    return (now.astimezone(UTC) - kept).date()


def require_sense(row: StoragePolicyRow) -> None:
    """Check that what a policy says does not contradict itself.

    What it leaves to the installation contradicts nothing: of two ages the smaller one is reached first.

    Raises:
        InvalidArgument: INVALID_FIELD, naming each field.
    """
    violations = list(_violations(row))
    if violations:
        raise InvalidArgument(
            "; ".join(f"{each.field}: {each.description}" for each in violations),
            reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
            violations=violations,
        )


def _violations(row: StoragePolicyRow) -> Iterator[FieldViolation]:
    archive_after, delete_after = row.archive_after, row.delete_after
    if archive_after is not None and delete_after is not None and delete_after <= archive_after:
        yield FieldViolation(
            "storage_policy.delete_after",
            "must be longer than archive_after, or nothing is ever archived;"
            " leave archive_after out to delete sooner",
        )
    finer = None
    for name in _ROLLUPS:
        kept = getattr(row, name)
        if kept is None:
            continue
        if finer is not None and kept < getattr(row, finer):
            yield FieldViolation(f"storage_policy.{name}", f"must not be shorter than {finer}")
        finer = name


class StoragePolicyStore:
    """Reads and writes policies.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def read(self, tenant: str) -> StoragePolicyRow:
        """Return a tenant's policy, also when it was never written.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            async with self._pool.acquire() as connection:
                return await read_storage_policy(connection, tenant)
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error

    async def write(self, row: StoragePolicyRow) -> StoragePolicyRow:
        """Write what `read` returned, changed; returns it with its new version and time.

        Raises:
            Aborted: ETAG_MISMATCH, it was written since.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            written = await self._pool.fetchrow(
                f"""
                INSERT INTO telemetry.storage_policy AS policy
                    (tenant_id, archive_after, delete_after,
                     minute_rollups_kept, hour_rollups_kept, day_rollups_kept)
                VALUES ($1, $3, $4, $5, $6, $7)
                ON CONFLICT (tenant_id) DO UPDATE
                SET archive_after = excluded.archive_after, delete_after = excluded.delete_after,
                    minute_rollups_kept = excluded.minute_rollups_kept,
                    hour_rollups_kept = excluded.hour_rollups_kept,
                    day_rollups_kept = excluded.day_rollups_kept,
                    version = policy.version + 1, update_time = clock_timestamp()
                WHERE policy.version = $2
                RETURNING {_COLUMNS}
                """,  # noqa: S608 - a constant
                row.tenant,
                row.version,
                *(getattr(row, age) for age in AGES),
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        if written is None:
            raise etag_mismatch()
        return _from_row(written)


async def read_storage_policy(connection: Connection, tenant: str) -> StoragePolicyRow:
    """Return a tenant's policy, also when it was never written.

    Args:
        connection: of a role that sees the tenant.
        tenant: whose.
    """
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM telemetry.storage_policy WHERE tenant_id = $1",  # noqa: S608 - a constant
        tenant,
    )
    return StoragePolicyRow(tenant) if row is None else _from_row(row)


async def read_storage_policies(pool: asyncpg.Pool) -> list[StoragePolicyRow]:
    """Return the policies of all tenants that have one.

    Args:
        pool: of the maintenance role.
    """
    rows = await pool.fetch(f"SELECT {_COLUMNS} FROM telemetry.storage_policy")  # noqa: S608 - a constant
    return [_from_row(row) for row in rows]


def etag_mismatch() -> Aborted:
    """Return the error for a policy that somebody else has written."""
    return Aborted(
        "the storage policy was changed by somebody else; read it again",
        reason=ErrorReason.ERROR_REASON_ETAG_MISMATCH,
    )


def _from_row(row: asyncpg.Record) -> StoragePolicyRow:
    return StoragePolicyRow(
        tenant=row["tenant_id"],
        version=row["version"],
        update_us=from_datetime(row["update_time"]),
        **{age: row[age] for age in AGES},
    )
