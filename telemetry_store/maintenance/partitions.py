"""Partitions: made before anybody writes to them, dropped when nobody asks for them."""

from datetime import timedelta

import asyncpg
import structlog

DAYS_AHEAD = 2
WINDOWS_AHEAD = timedelta(hours=6)
_log = structlog.get_logger()


async def ensure_segment_days(pool: asyncpg.Pool, *, late_window_days: int) -> None:
    """Make the days of the live window, one more before it, and the coming ones."""
    made = await pool.fetchval(
        "SELECT telemetry.ensure_segment_days($1, $2)", late_window_days + 1, DAYS_AHEAD
    )
    if made:
        _log.info("segment days made", days=made)


async def drop_segment_days(pool: asyncpg.Pool, *, late_window_days: int) -> None:
    """Drop the days of before the live window that sealing has emptied and no backfill is declared for."""
    dropped = await pool.fetchval("SELECT telemetry.drop_segment_days($1)", late_window_days + 1)
    if dropped:
        _log.info("segment days dropped", days=dropped)


async def ensure_request_windows(pool: asyncpg.Pool) -> None:
    """Make the windows that request ids go into during the next hours."""
    made = await pool.fetchval("SELECT telemetry.ensure_request_windows($1)", WINDOWS_AHEAD)
    if made:
        _log.info("request windows made", windows=made)


async def drop_request_windows(pool: asyncpg.Pool, *, keep: timedelta) -> None:
    """Drop the windows whose ids are no longer kept."""
    dropped = await pool.fetchval("SELECT telemetry.drop_request_windows($1)", keep)
    if dropped:
        _log.info("request windows dropped", windows=dropped)
