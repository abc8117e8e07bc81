"""How fast samples are moved while others write: ingest goes first, but not for ever."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

from telemetry_store.tiers.sealing import LANES

# What ingest writes at this rate costs about what sealing does: both then have half of the time.
_EVEN_BYTES_PER_S = 4_000_000
# Sealing has a tenth of the time at the least …
_MOST_RESTS = 9.0
# … of a round's first hours; less and less rest then, none when it is so old.
_ROUND_S = 6 * 3600.0
# Backends tell what they have written once a second at the most.
_MEASURED_EVERY_S = 2.0

_WRITTEN = """
SELECT coalesce(sum((pg_stat_get_backend_wal(pid)).wal_bytes), 0)::bigint
FROM pg_stat_activity
WHERE usename = 'twinmesh_ingest' AND datname = current_database()
"""


class Throttle:
    """Rests between operations, the longer the more ingest writes meanwhile.

    Args:
        pool: of the maintenance role.
        sleep: how it rests.
    """

    def __init__(
        self, *, pool: asyncpg.Pool, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._pool = pool
        self._sleep = sleep
        self._measuring = asyncio.Lock()
        self._measured_at = float("inf")
        self._written = 0
        self._rate = 0.0

    async def begin(self) -> None:
        """Measure from now on; until enough of it was seen, the rate of before holds, at first none."""
        async with self._measuring:
            self._written = await self._read()
            self._measured_at = asyncio.get_running_loop().time()

    async def rest(self, *, took_s: float, round_s: float) -> None:
        """Rest after an operation.

        Args:
            took_s: how long it took, in seconds.
            round_s: how old its round is.
        """
        async with self._measuring:
            await self._measure()
        rests = rests_for(self._rate, round_s=round_s)
        if rests:
            # The other lanes work meanwhile.
            await self._sleep(took_s * rests * LANES)

    async def _measure(self) -> None:
        elapsed = asyncio.get_running_loop().time() - self._measured_at
        if elapsed < _MEASURED_EVERY_S:
            return
        written = await self._read()
        # What a connection wrote is forgotten with it, so the sum may fall.
        self._rate = max(written - self._written, 0) / elapsed
        self._measured_at, self._written = self._measured_at + elapsed, written

    async def _read(self) -> int:
        written: int = await self._pool.fetchval(_WRITTEN)
        return written


def rests_for(bytes_per_s: float, *, round_s: float) -> float:
    """Return how long to rest, as a multiple of how long the work took.

    Args:
        bytes_per_s: of write-ahead log that ingest writes.
        round_s: how old the round is, in seconds.
    """
    return min(bytes_per_s / _EVEN_BYTES_PER_S, _MOST_RESTS) * max(1 - round_s / _ROUND_S, 0)
