"""Dead letters that are older than they are kept."""

from datetime import timedelta

import asyncpg
import structlog

_log = structlog.get_logger()
_AT_ONCE = 1_000
# A worker long away catches up over several turns, and does its other steps in between.
_MOST = 50_000


async def expire_dead_letters(pool: asyncpg.Pool, *, keep: timedelta) -> None:
    """Delete letters that came longer ago than letters are kept, some at a time.

    Args:
        pool: of the maintenance role.
        keep: how long tenants keep them that do not say otherwise.
    """
    expired = 0
    while expired < _MOST:
        deleted = await pool.fetchval(
            """
            WITH deleted AS (
                DELETE FROM telemetry.dead_letter
                WHERE (tenant_id, dead_letter_id) IN (
                    SELECT tenant_id, dead_letter_id
                    FROM telemetry.dead_letter
                    LEFT JOIN telemetry.ingest_policy AS policy USING (tenant_id)
                    WHERE received_at < now() - coalesce(policy.dead_letter_retention, $1::interval)
                    LIMIT $2
                )
                RETURNING 1
            )
            SELECT count(*) FROM deleted
            """,
            keep,
            _AT_ONCE,
        )
        expired += deleted
        if deleted < _AT_ONCE:
            break
    if expired:
        _log.info("dead letters expired", letters=expired)
