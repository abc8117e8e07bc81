"""Rollups kept near the newest commit: feed consumer `rollups`.

A turn is one REPEATABLE READ transaction that takes commits and saves the frontier. A bucket all of whose new
samples are later than those that it holds is extended by them; that is what comes nearly always, and needs no
other sample. Any other is computed anew: an hour from minutes and a day from hours at once; what takes
samples goes to `rollup_stale`, which is worked off when no commit is behind, so that what is stored is always
that of the frontier. After a crash a turn is done or not, and two workers wait for each other.
"""

import time
from datetime import timedelta

import asyncpg
import numpy as np
import numpy.typing as npt
import structlog

from meshkit.db import Connection
from telemetry_store.feed import FeedExpiredError, decode_frontier, encode_frontier, snapshot
from telemetry_store.rollups.aggregates import (
    MICROS_PER_MINUTE,
    Buckets,
    combined,
    joined,
    ordered,
    starts_of_width,
)
from telemetry_store.rollups.new_samples import NextCommits, new_minutes, next_commits
from telemetry_store.rollups.rows import (
    CONSUMER,
    NARROWER,
    TABLES,
    Ranges,
    aligned,
    match,
    read_horizons,
    read_rows,
    store_rows,
)
from telemetry_store.rollups.stale import add_everything, add_stale, add_stale_of_bulk, count_damaged, repair
from telemetry_store.tiers.reader import Archive

_log = structlog.get_logger()
# Often enough to lag less than a minute, seldom enough not to update the running buckets all the time.
_INTERVAL_S = 15.0
# Of a run that does not catch up: its worker tells that it works when a run has ended.
_RUN_S = 10.0
_NEVER = np.iinfo(np.int64).max

_REGISTER = "INSERT INTO telemetry.feed_consumer (name) VALUES ($1) ON CONFLICT (name) DO NOTHING"
_FIRST_HORIZON = """
INSERT INTO telemetry.rollup_horizon (tenant_id, width, start_time)
VALUES ('', $1, ((now() AT TIME ZONE 'UTC' - $2::interval)::date - date '1970-01-01') * 86400000000)
ON CONFLICT (tenant_id, width) DO NOTHING
"""
# Locked, so that a second worker waits here instead of repeating the work.
_LOCK_FRONTIER = "SELECT frontier FROM telemetry.feed_consumer WHERE name = $1 FOR UPDATE"
_SAVE_FRONTIER = "UPDATE telemetry.feed_consumer SET frontier = $2, updated_at = now() WHERE name = $1"

# Otherwise a turn reads all that was written in the last minute or two.
_SUMMARIZE = "SELECT telemetry.summarize_segment_days()"
_NEWEST = "SELECT instance, last_commit_no FROM telemetry.ingest_instance"


async def register_rollups(pool: asyncpg.Pool, *, minutes_kept: timedelta) -> None:
    """Make sure that rollups are a feed consumer.

    Args:
        pool: of the maintenance role.
        minutes_kept: what is older is not stored from the first turn on.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_REGISTER, CONSUMER)
        await connection.execute(_FIRST_HORIZON, MICROS_PER_MINUTE, minutes_kept)


async def advance_rollups(pool: asyncpg.Pool, *, archive: Archive | None) -> bool:
    """Take the rollups over the next commits; returns whether there is more to do.

    Args:
        pool: of the maintenance role.
        archive: None: nothing was ever archived.

    Raises:
        asyncpg.SerializationError: another worker did it.
        Unavailable: ARCHIVE_UNAVAILABLE, what is stale cannot be computed now.
    """
    async with snapshot(pool) as connection:
        frontier = decode_frontier(await connection.fetchval(_LOCK_FRONTIER, CONSUMER))
        try:
            taken = await next_commits(connection, frontier)
        except FeedExpiredError as error:
            _log.warning("rollups are computed anew", reason=str(error))
            await add_everything(connection)
            rows = await connection.fetch(_NEWEST)
            newest = {row["instance"]: row["last_commit_no"] for row in rows}
            await connection.execute(_SAVE_FRONTIER, CONSUMER, encode_frontier(newest))
            return True
        if taken.commits:
            await _take(connection, taken)
            await connection.execute(_SAVE_FRONTIER, CONSUMER, encode_frontier(taken.frontier))
        if taken.behind:
            return True
        try:
            async with connection.transaction():
                return await repair(connection, archive)
        except Exception as error:
            # What was taken stays taken, whatever else cannot be computed now.
            failure = error
    raise failure


class RollupKeeper:
    """Keeps rollups near the newest commit.

    Args:
        pool: of the maintenance role.
        minutes_kept: what is older when there are no rollups yet is not stored as minutes.
        archive: None: nothing was ever archived.
    """

    def __init__(self, *, pool: asyncpg.Pool, minutes_kept: timedelta, archive: Archive | None) -> None:
        self._pool = pool
        self._minutes_kept = minutes_kept
        self._archive = archive
        self._caught_up_at = time.monotonic()
        self._due_at = self._caught_up_at
        self._damaged = 0

    @property
    def lag_s(self) -> float:
        """Return the seconds since they were last seen to hold every commit; before that since the start."""
        return time.monotonic() - self._caught_up_at

    @property
    def damaged(self) -> int:
        """Return how many ranges waited for their archived day to be mended when they were last caught up."""
        return self._damaged

    async def run(self) -> None:
        """Go on for some seconds, unless the last run has caught up and is not long ago.

        Raises:
            Unavailable: ARCHIVE_UNAVAILABLE, what is stale cannot be computed now.
        """
        started = time.monotonic()
        if started < self._due_at:
            return
        await register_rollups(self._pool, minutes_kept=self._minutes_kept)
        more = True
        while more:
            turn_at = time.monotonic()
            await self._pool.execute(_SUMMARIZE)
            try:
                more = await advance_rollups(self._pool, archive=self._archive)
            except asyncpg.SerializationError:
                # Another worker has just done it: what is left is seen in the next run.
                return
            if more and time.monotonic() >= started + _RUN_S:
                return
        self._damaged = await count_damaged(self._pool)
        self._caught_up_at = turn_at
        self._due_at = started + _INTERVAL_S


async def _take(connection: Connection, taken: NextCommits) -> None:
    await add_stale_of_bulk(connection, taken.commits)
    owners, minutes = await new_minutes(connection, taken.commits, taken.kinds)
    if not owners:
        return
    horizons = await read_horizons(connection, (owner.tenant for owner in owners))
    narrower_horizon = np.full(len(owners), _NEVER)
    for width_us in TABLES:
        horizon = horizons.of(owners, width_us)
        new = combined(minutes, starts_of_width(width_us))
        new = new.at(new.starts >= horizon[new.places])
        touched = Ranges(new.places, new.starts, new.starts + width_us)
        known = await read_rows(connection, width_us, owners, aligned(touched, width_us))
        buckets, late = _extended(known, new)
        of_narrower = late & (new.starts >= narrower_horizon[new.places])
        if of_narrower.any():
            ranges = aligned(touched.at(of_narrower), width_us)
            narrower = await read_rows(connection, NARROWER[width_us], owners, ranges)
            buckets = joined([buckets, combined(narrower, starts_of_width(width_us))])
        await store_rows(connection, width_us, owners, buckets)
        await add_stale(connection, owners, aligned(touched.at(late & ~of_narrower), width_us))
        narrower_horizon = horizon


def _extended(known: Buckets, new: Buckets) -> tuple[Buckets, npt.NDArray[np.bool_]]:
    """Return buckets with what is new, and which of the new ones are not all later than what is known."""
    positions, found = match(new.places, new.starts, known)
    late = np.zeros(len(new), np.bool_)
    late[found] = new.first_times[found] <= known.last_times[positions[found]]
    kept = known.at(positions[found & ~late])
    # Sorting is stable: what is known comes first.
    both = ordered(joined([kept, new.at(~late)]))
    return combined(both, lambda starts: starts), late
