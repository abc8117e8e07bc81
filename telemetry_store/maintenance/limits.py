"""Limits: what is no longer of use of their counting."""

from datetime import timedelta

import asyncpg
import structlog

HITS_KEPT = timedelta(days=7)
# A bucket is full again long before.
_UNUSED_KEPT = timedelta(hours=1)
_log = structlog.get_logger()


async def forget_limit_hits(pool: asyncpg.Pool) -> None:
    """Forget what was sent back long ago."""
    rows = await pool.fetch(
        "DELETE FROM telemetry.limit_hit WHERE last_time < now() - $1::interval RETURNING limit_hit_id",
        HITS_KEPT,
    )
    if rows:
        _log.info("limit hits forgotten", hits=len(rows))


async def forget_unused_limits(pool: asyncpg.Pool) -> None:
    """Forget what nobody has counted with for an hour.

    A bucket that owes more than an hour's worth is full then: who owes so much is let off the rest.
    """
    await pool.execute(
        "DELETE FROM telemetry.limit_bucket WHERE updated_at < now() - $1::interval", _UNUSED_KEPT
    )
    await pool.execute(
        "DELETE FROM telemetry.limit_lease WHERE renewed_at < now() - $1::interval", _UNUSED_KEPT
    )
