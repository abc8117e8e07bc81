"""Objects that are no longer of use: retired ones, and those that nobody ever named."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog

from telemetry_store.sample_horizon import RAISE_SAMPLE_HORIZON
from telemetry_store.tiers.archive_manifest import day_lock, place_of
from telemetry_store.tiers.archive_store import ArchiveStore

_AT_ONCE = 1_000
_log = structlog.get_logger()

_EXPIRE = f"""
WITH gone AS (
    UPDATE telemetry.archive_object AS object SET retired_at = now()
    WHERE retired_at IS NULL
      AND greatest(sealed_at, (day + 1)::timestamp AT TIME ZONE 'UTC') <= now() - coalesce(
          (SELECT own.kept FROM unnest($2::text[], $3::interval[]) AS own (tenant_id, kept)
           WHERE own.tenant_id = object.tenant_id),
          $1
      )
    RETURNING tenant_id, day, samples
), raised AS ({RAISE_SAMPLE_HORIZON})
SELECT count(*) AS objects, coalesce(sum(samples), 0)::bigint AS samples FROM gone
"""  # noqa: S608 - a constant  # nosec B608


async def expire_archive(
    pool: asyncpg.Pool, *, kept: timedelta | None, kept_by_tenant: Mapping[str, timedelta]
) -> None:
    """Retire objects whose samples are no longer kept; they are deleted after the grace.

    Ages are counted from the later of the day's end and the newest sealing in it.

    Args:
        pool: of the maintenance role.
        kept: how long, unless a tenant says otherwise; None: for ever …
        kept_by_tenant: … as these do.
    """
    expired = await pool.fetchrow(_EXPIRE, kept, list(kept_by_tenant), list(kept_by_tenant.values()))
    assert expired is not None  # noqa: S101 - an aggregate without groups is one row
    if expired["objects"]:
        _log.info("archived objects expired", objects=expired["objects"], samples=expired["samples"])


async def delete_orphans(pool: asyncpg.Pool, store: ArchiveStore, *, grace: timedelta) -> None:
    """Delete objects that were retired, or written and never named, longer ago than the grace.

    The grace is for readers, whose snapshots may still name what is retired. Objects of an
    attempt under way are kept however old they are: it holds its day's lock.

    Args:
        pool: of the maintenance role.
        store: where they are.
        grace: longer than any answer takes.

    Raises:
        StoreError: the store does not answer; the rest waits.
    """
    retired = await _delete_retired(pool, store, grace)
    unnamed = await _delete_unnamed(pool, store, grace)
    if retired or unnamed:
        _log.info("archived objects deleted", retired=retired, unnamed=unnamed)


async def _delete_retired(pool: asyncpg.Pool, store: ArchiveStore, grace: timedelta) -> int:
    deleted = 0
    while True:
        rows = await pool.fetch(
            "SELECT tenant_id, day, path FROM telemetry.archive_object "
            "WHERE retired_at <= now() - $1::interval ORDER BY retired_at LIMIT $2",
            grace,
            _AT_ONCE,
        )
        for row in rows:
            # The row goes last: who dies in between finds it again.
            await store.remove(row["path"])
            await pool.execute(
                "DELETE FROM telemetry.archive_object WHERE tenant_id = $1 AND day = $2 AND path = $3", *row
            )
            deleted += 1
        if len(rows) < _AT_ONCE:
            return deleted


async def _delete_unnamed(pool: asyncpg.Pool, store: ArchiveStore, grace: timedelta) -> int:
    archive_id = await pool.fetchval("SELECT archive_id FROM telemetry.archive")
    found = await store.below(str(archive_id))
    deleted = 0
    for start in range(0, len(found), _AT_ONCE):
        rows = await pool.fetch(
            "SELECT found.path FROM unnest($1::text[]) AS found (path) "
            "WHERE NOT EXISTS "
            "(SELECT FROM telemetry.archive_object AS object WHERE object.path = found.path)",
            found[start : start + _AT_ONCE],
        )
        for row in rows:
            deleted += await _delete_if_unnamed(pool, store, row["path"], grace)
    return deleted


async def _delete_if_unnamed(pool: asyncpg.Pool, store: ArchiveStore, path: str, grace: timedelta) -> bool:
    place = place_of(path)
    if place is None:  # Nothing that we wrote.
        return False
    tenant, day = place
    modified = await store.modified(path)
    if modified is None or modified > datetime.now(UTC) - grace:
        return False
    async with pool.acquire() as connection, day_lock(connection, tenant, day) as locked:
        # An attempt that has just ended may have named it; with the lock no other begins.
        if not locked or await connection.fetchval(
            "SELECT EXISTS "
            "(SELECT FROM telemetry.archive_object WHERE tenant_id = $1 AND day = $2 AND path = $3)",
            tenant,
            day,
            path,
        ):
            return False
        await store.remove(path)
    return True
