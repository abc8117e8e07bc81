"""Raw messages: room for those to come, and the end of those that nobody keeps any longer."""

from collections.abc import Mapping
from datetime import timedelta

import asyncpg
import structlog

DAYS_AHEAD = 2
_log = structlog.get_logger()
_DELETED_AT_ONCE = 10_000


async def ensure_raw_days(pool: asyncpg.Pool) -> None:
    """Make the days that messages come on."""
    made = await pool.fetchval("SELECT telemetry.ensure_raw_days($1)", DAYS_AHEAD)
    if made:
        _log.info("raw days made", days=made)


async def expire_raw_messages(
    pool: asyncpg.Pool, *, kept: timedelta, kept_by_tenant: Mapping[str, timedelta]
) -> None:
    """Drop days of which nobody keeps anything, and delete what single tenants no longer keep.

    Args:
        pool: of the maintenance role.
        kept: how long, 1 day at least, unless a tenant says otherwise …
        kept_by_tenant: … as these do.
    """
    longest = max([kept, *kept_by_tenant.values()])
    dropped = await pool.fetchval("SELECT telemetry.drop_raw_days($1)", longest)
    if dropped:
        _log.info("raw days dropped", days=dropped)
    for row in await pool.fetch("SELECT tenant FROM telemetry.raw_tenants() AS tenant"):
        tenant = row["tenant"]
        deleted = 0
        while True:
            count = await pool.fetchval(
                "SELECT telemetry.expire_raw_messages($1, $2, $3)",
                tenant,
                kept_by_tenant.get(tenant, kept),
                _DELETED_AT_ONCE,
            )
            deleted += count
            if count < _DELETED_AT_ONCE:
                break
        if deleted:
            _log.info("raw messages expired", tenant=tenant, messages=deleted)
