"""Sealing, in rounds: what was due when a round began is sealed by its end, over many turns if need be."""

import asyncio
from datetime import timedelta

import asyncpg
import structlog

from telemetry_store.maintenance.throttle import Throttle
from telemetry_store.tiers.due import due_batches
from telemetry_store.tiers.floor import (
    Bound,
    SettledOrders,
    drop_stalled_consumers,
    find_bound,
    forget_commits,
    raise_floors,
)
from telemetry_store.tiers.sealing import LANES, Batch, Moved, seal

# Other steps of the same worker come in between.
TURN_S = 20.0
# Transactions are short: most turns find them over within this time.
PATIENCE_S = 1.0
_log = structlog.get_logger()


class Sealing:
    """The step that seals.

    A round begins whenever readers have had their time with what came since the last one: the
    hours that ended meanwhile, and what came late for others. Each is so merged once, not each
    time that a sample comes.

    Args:
        pool: of the maintenance role.
        seal_after: how long a commit stays findable; also the time between two rounds.
        throttle: lets others write.
        turn_s: how long one turn works at the most, in seconds.
        patience_s: how long one waits for transactions that run.
    """

    def __init__(
        self,
        *,
        pool: asyncpg.Pool,
        seal_after: timedelta,
        throttle: Throttle,
        turn_s: float = TURN_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._pool = pool
        self._seal_after = seal_after
        self._throttle = throttle
        self._turn_s = turn_s
        self._patience_s = patience_s
        self._settled = SettledOrders(pool=pool)
        self._round: Round | None = None
        self._next_round_at = float("-inf")

    async def turn(self) -> None:
        """Go on with the round under way, or begin the next one when it is time."""
        clock = asyncio.get_running_loop().time
        if self._round is None:
            if clock() < self._next_round_at:
                return
            bound = await self._find_bound()
            if bound is None:
                return
            self._round = Round(self._pool, bound, self._throttle, began_s=clock())
        working, self._round = self._round, None  # One that fails is not gone on with.
        if not await working.work(until_s=clock() + self._turn_s):
            self._round = working
            return
        working.report(clock())
        await forget_commits(self._pool)
        self._next_round_at = working.began_s + self._seal_after.total_seconds()

    async def _find_bound(self) -> Bound | None:
        """Return up to where to seal, the floors being raised to there."""
        settled = await self._settled.find(patience_s=self._patience_s)
        if settled is None:
            return None
        await drop_stalled_consumers(self._pool)
        bound = await find_bound(self._pool, settled, seal_after=self._seal_after)
        if bound is not None:
            await raise_floors(self._pool, bound)
        return bound


class Round:
    """Everything that is due up to one bound."""

    def __init__(self, pool: asyncpg.Pool, bound: Bound, throttle: Throttle, *, began_s: float) -> None:
        self.began_s = began_s
        self._pool = pool
        self._bound = bound
        self._throttle = throttle
        self._due = due_batches(pool, bound)
        self.moved = Moved()
        self._skipped = 0

    async def work(self, *, until_s: float) -> bool:
        """Seal until a time of the loop's clock; returns whether the round is over."""
        clock = asyncio.get_running_loop().time
        await self._throttle.begin()
        queues = [asyncio.Queue[Batch | None](maxsize=1) for _ in range(LANES)]
        over = True
        async with asyncio.TaskGroup() as lanes:
            for queue in queues:
                lanes.create_task(self._seal_all(queue))
            async for batch in self._due:
                await queues[batch.lane].put(batch)
                if clock() > until_s:
                    over = False
                    break
            for queue in queues:
                await queue.put(None)
        return over

    def report(self, now_s: float) -> None:
        """Log what the round sealed, if anything."""
        moved = self.moved
        if moved.operations or self._skipped:
            _log.info(
                "sealed",
                order_no=self._bound.order_no,
                operations=moved.operations,
                left_to_others=self._skipped,
                segments=moved.segments,
                hot_bytes=moved.hot_bytes,
                merged=moved.merged,
                rows=moved.rows,
                samples=moved.samples,
                sealed_bytes=moved.sealed_bytes,
                seconds=round(now_s - self.began_s, 3),
            )

    async def _seal_all(self, queue: asyncio.Queue[Batch | None]) -> None:
        clock = asyncio.get_running_loop().time
        while (batch := await queue.get()) is not None:
            began = clock()
            moved = await seal(self._pool, batch, order_no=self._bound.order_no)
            if moved is None:
                self._skipped += 1
                continue
            self.moved.add(moved)
            await self._throttle.rest(took_s=clock() - began, round_s=clock() - self.began_s)
