"""Rows of the archive's manifest, and the lock of a tenant's day in it."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from uuid import UUID

import asyncpg

from meshkit.db import Connection
from telemetry_store.tiers.archive_file import Footer, read_footer
from telemetry_store.tiers.archive_store import ArchiveStore

_PATH = re.compile(r"[^/]+/tenant=(?P<tenant>[^/]+)/day=(?P<day>\d{4}-\d\d-\d\d)/[^/]+")
_KEY = "hashtextextended('telemetry.archive ' || $1::text || ' ' || $2::date::text, 0)"


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One row of the manifest: where its samples lie; times in microseconds since the epoch."""

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

    @classmethod
    def of(cls, row: asyncpg.Record) -> "ArchivedObject":
        """Return what a row says."""
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
        )


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
