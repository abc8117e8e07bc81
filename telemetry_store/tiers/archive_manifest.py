"""Rows of the archive's manifest, and the lock of a tenant's day in it."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import asyncpg

from meshkit.db import Connection
from telemetry_store.tiers.archive_file import Footer, read_footer
from telemetry_store.tiers.archive_store import ArchiveStore
from telemetry_store.tiers.archive_writing import StoredObject

_PATH = re.compile(r"[^/]+/tenant=(?P<tenant>[^/]+)/day=(?P<day>\d{4}-\d\d-\d\d)/[^/]+")
_KEY = "hashtextextended('telemetry.archive ' || $1::text || ' ' || $2::date::text, 0)"

OBJECT_COLUMNS = """
    tenant_id, day, path, first_series, last_series, first_time, last_time,
    bytes, footer_bytes, footer_crc, sealed_at
"""
_OF_DAY = f"""
SELECT {OBJECT_COLUMNS}
FROM telemetry.archive_object
WHERE tenant_id = $1 AND day = $2 AND retired_at IS NULL
ORDER BY first_series, first_time
"""  # noqa: S608 - a constant  # nosec B608

_RETIRE = """
WITH retired AS (
    UPDATE telemetry.archive_object SET retired_at = now()
    WHERE tenant_id = $1 AND day = $2 AND retired_at IS NULL
    RETURNING path
)
SELECT coalesce(array_agg(path), '{}') FROM retired
"""

_GENERATION = """
SELECT coalesce(max(generation), 0) + 1 FROM telemetry.archive_object WHERE tenant_id = $1 AND day = $2
"""

_NAME = """
INSERT INTO telemetry.archive_object
    (tenant_id, day, path, generation, first_series, last_series, first_time, last_time, series, samples,
     bytes, footer_bytes, footer_crc, checksum, order_no, sealed_at, verified_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
"""


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One row of the manifest: where its samples lie; times in microseconds since the epoch.

    `sealed_at` is when the newest of its samples were sealed.
    """

    tenant: str
    day: date
    path: str
    first_series: int
    last_series: int
    first_time_us: int
    last_time_us: int
    bytes: int
    footer_bytes: int
    footer_crc: int
    sealed_at: datetime

    @classmethod
    def of(cls, row: asyncpg.Record) -> "ArchivedObject":
        """Return what a row of OBJECT_COLUMNS says."""
        return cls(
            row["tenant_id"],
            row["day"],
            row["path"],
            row["first_series"],
            row["last_series"],
            row["first_time"],
            row["last_time"],
            row["bytes"],
            row["footer_bytes"],
            row["footer_crc"],
            row["sealed_at"],
        )


async def read_objects(connection: Connection, tenant: str, day: date) -> list[ArchivedObject]:
    """Return the objects in which a tenant's day lies, by series and time.

    Args:
        connection: of the maintenance role.
        tenant: whose.
        day: UTC.
    """
    return list(map(ArchivedObject.of, await connection.fetch(_OF_DAY, tenant, day)))


async def replace_objects(
    connection: Connection, tenant: str, day: date, stored: Sequence[StoredObject], sealed_at: datetime
) -> set[str]:
    """Name the next generation of a tenant's day and retire the one before; returns the paths of that.

    Args:
        connection: of the maintenance role, in a transaction.
        tenant: whose.
        day: UTC.
        stored: the next generation.
        sealed_at: when the newest of its samples were sealed.
    """
    retired = await connection.fetchval(_RETIRE, tenant, day)
    generation = await connection.fetchval(_GENERATION, tenant, day)
    await connection.executemany(
        _NAME,
        [
            (
                tenant,
                day,
                each.path,
                generation,
                each.written.first_series,
                each.written.last_series,
                each.written.first_time_us,
                each.written.last_time_us,
                each.written.series,
                each.written.samples,
                each.bytes,
                each.footer_bytes,
                each.footer_crc,
                each.written.checksum,
                each.written.order_no,
                sealed_at,
                each.verified_at,
            )
            for each in stored
        ],
    )
    return set(retired)


@asynccontextmanager
async def day_lock(connection: Connection, tenant: str, day: date) -> AsyncIterator[bool]:
    """Hold the lock of a tenant's day in the archive, as long as the connection lives.

    Yields whether it is held: not when somebody else has it.
    """
    locked = bool(await connection.fetchval(f"SELECT pg_try_advisory_lock({_KEY})", tenant, day))
    try:
        yield locked
    finally:
        if locked and not connection.is_closed():
            await connection.execute(f"SELECT pg_advisory_unlock({_KEY})", tenant, day)


def folder_of(archive_id: UUID, tenant: str, day: date) -> str:
    """Return where the objects of a tenant's day lie, below the archive's URL.

    Args:
        archive_id: of the database, so that several may share a store.
        tenant: whose.
        day: UTC.
    """
    return f"{archive_id}/tenant={tenant}/day={day.isoformat()}"


def place_of(path: str) -> tuple[str, date] | None:
    """Return whose object lies at a path, and of which day; None: it is none of ours."""
    found = _PATH.fullmatch(path)
    return (found["tenant"], date.fromisoformat(found["day"])) if found else None


async def read_footer_of(store: ArchiveStore, found: ArchivedObject) -> Footer:
    """Return what the footer of an object says.

    Raises:
        StoreError: the store does not answer.
        CorruptObjectError: it is not the one that was verified.
    """
    content = await store.read(found.path, found.bytes - found.footer_bytes, found.bytes)
    return read_footer(content, found.footer_crc)
