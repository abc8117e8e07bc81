"""Partitions: made before anybody writes to them, dropped when nobody asks for them."""

import asyncio
from datetime import date, timedelta

import asyncpg
import structlog

DAYS_AHEAD = 2
WINDOWS_AHEAD = timedelta(hours=6)
# Answers read one snapshot. One that began before the last row went may still look for it.
EMPTY_FOR_S = 3600.0
_log = structlog.get_logger()


async def ensure_segment_days(pool: asyncpg.Pool, *, late_window_days: int) -> None:
    """Make the days of the live window, one more before it, and the coming ones."""
    made = await pool.fetchval(
        "SELECT telemetry.ensure_segment_days($1, $2)", late_window_days + 1, DAYS_AHEAD
    )
    if made:
        _log.info("segment days made", days=made)


class EmptySegmentDays:
    """Drops the days of before the live window that sealing has emptied and no backfill is declared for.

    Args:
        pool: of the maintenance role.
        late_window_days: how old live telemetry may be: such days are in use.
    """

    def __init__(self, *, pool: asyncpg.Pool, late_window_days: int) -> None:
        self._pool = pool
        self._days_back = late_window_days + 1
        self._since: dict[date, float] = {}

    async def drop(self, *, empty_for_s: float = EMPTY_FOR_S) -> None:
        """Drop those that have been empty for a while.

        Args:
            empty_for_s: for so long.
        """
        now = asyncio.get_running_loop().time()
        rows = await self._pool.fetch(
            "SELECT day, dropped FROM telemetry.drop_segment_days($1, $2)",
            self._days_back,
            [day for day, since in self._since.items() if now - since >= empty_for_s],
        )
        self._since = {row["day"]: self._since.get(row["day"], now) for row in rows if not row["dropped"]}
        if dropped := sum(row["dropped"] for row in rows):
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
