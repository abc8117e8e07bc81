"""The bound of sealing: which commits nobody needs to find any more (docs/adr/0014).

Everything moved by one round of sealing has an order up to one bound, so whatever comes
later outranks what is sealed. The floors of the instances rise before anything is moved.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
import structlog

from telemetry_store.latest import CHECKPOINT

# Advanced by maintenance itself, so waited for however long it takes.
OWN_CONSUMERS = frozenset({CHECKPOINT, "rollups"})
# Another one that takes nothing for so long is dropped, and starts over when it comes back.
CONSUMER_PATIENCE = timedelta(hours=24)
_STATEMENT_S = 600.0  # A backlog of months may be forgotten at once.
_ASK_AGAIN_S = 0.02
_log = structlog.get_logger()

# Before its own order was taken, every transaction had its number: it is below one that is taken now.
# (`pg_snapshot_xmax` is no such number: it may be that of a transaction which still runs.)
_LAST_ORDER = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM telemetry.commit_order"
_NEXT_TRANSACTION = "SELECT pg_current_xact_id()::text::bigint"
_OLDEST_RUNNING = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"

_DROP_CONSUMERS = """
DELETE FROM telemetry.feed_consumer AS consumer
WHERE consumer.name <> ALL ($1::text[]) AND consumer.updated_at < now() - $2::interval
  AND EXISTS (
      SELECT FROM telemetry.ingest_instance AS i
      JOIN telemetry.ingest_commit AS c USING (instance)
      WHERE c.commit_no > coalesce((consumer.frontier ->> i.instance::text)::bigint, 0)
        AND i.last_commit_no > coalesce((consumer.frontier ->> i.instance::text)::bigint, 0)
        AND c.committed_at < now() - $2::interval
  )
RETURNING consumer.name
"""

_BOUND = """
SELECT
    (SELECT count(*) FROM telemetry.feed_consumer WHERE name = ANY ($1::text[])) = cardinality($1)
        AS registered,
    least($2::bigint, young.order_no - 1, untaken.order_no - 1) AS order_no,
    (extract(epoch FROM least(now() - $3::interval, untaken.committed_at)) * 1000000)::bigint AS through
FROM (
    SELECT min(order_no) AS order_no
    FROM telemetry.ingest_commit
    WHERE committed_at > now() - $3::interval
) AS young
CROSS JOIN (
    SELECT min(c.order_no) AS order_no, min(c.committed_at) AS committed_at
    FROM telemetry.feed_consumer AS consumer
    CROSS JOIN telemetry.ingest_instance AS i
    CROSS JOIN LATERAL (
        SELECT coalesce((consumer.frontier ->> i.instance::text)::bigint, 0)
    ) AS taken (commit_no)
    CROSS JOIN LATERAL (
        SELECT order_no, committed_at
        FROM telemetry.ingest_commit
        WHERE instance = i.instance AND commit_no > taken.commit_no
        ORDER BY commit_no
        LIMIT 1
    ) AS c
    WHERE i.last_commit_no > taken.commit_no
) AS untaken
"""

# One instance at a time: its row is held by its commits, and another's must not wait for them.
_INSTANCES = "SELECT instance FROM telemetry.ingest_instance WHERE floor_commit_no < last_commit_no"
_RAISE = """
UPDATE telemetry.ingest_instance AS i
SET floor_commit_no = passed.commit_no
FROM (
    SELECT max(c.commit_no) AS commit_no
    FROM telemetry.ingest_instance AS known
    JOIN telemetry.ingest_commit AS c ON c.instance = known.instance AND c.commit_no > known.floor_commit_no
    WHERE known.instance = $1 AND c.order_no <= $2
) AS passed
WHERE i.instance = $1 AND i.floor_commit_no < passed.commit_no
"""

_FORGET = """
WITH forgotten AS (
    DELETE FROM telemetry.ingest_commit AS c
    USING (
        SELECT i.instance, least(
            i.floor_commit_no,
            (SELECT min(coalesce((frontier ->> i.instance::text)::bigint, 0)) FROM telemetry.feed_consumer)
        ) AS commit_no
        FROM telemetry.ingest_instance AS i
        WHERE i.floor_commit_no > 0
    ) AS passed
    WHERE c.instance = passed.instance AND c.commit_no <= passed.commit_no
    RETURNING 1
)
SELECT count(*) FROM forgotten
"""


@dataclass(frozen=True, slots=True)
class Bound:
    """Up to where may be sealed.

    Attributes:
        order_no: only rows up to here, all of whose commits are known.
        through_us: commits of before this time (microseconds since the epoch) are below it.
    """

    order_no: int
    through_us: int


class SettledOrders:
    """Finds orders that no transaction under way has any more.

    Args:
        pool: of the maintenance role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._asked: tuple[int, int] | None = None

    async def find(self, *, patience_s: float = 0.0) -> int | None:
        """Return an order up to which all are committed or never will be; None: not known yet, ask again.

        What was asked once stays until it is answered, so that transactions which overlap without
        end do not put it off for ever.

        Args:
            patience_s: for so long transactions that run are waited for, in any database of the server.
        """
        if self._asked is None:
            order_no = await self._pool.fetchval(_LAST_ORDER)
            self._asked = order_no, await self._pool.fetchval(_NEXT_TRANSACTION)
        order_no, transaction = self._asked
        clock = asyncio.get_running_loop().time
        until_s = clock() + patience_s
        while await self._pool.fetchval(_OLDEST_RUNNING) < transaction:
            if clock() >= until_s:
                return None
            await asyncio.sleep(_ASK_AGAIN_S)
        self._asked = None
        return order_no


async def find_bound(pool: asyncpg.Pool, settled: int, *, seal_after: timedelta) -> Bound | None:
    """Return up to where may be sealed; None when nothing may.

    Args:
        pool: of the maintenance role.
        settled: an order up to which all are committed or never will be.
        seal_after: how long a commit stays findable, for readers that lag and watches that resume.
    """
    [row] = await pool.fetch(_BOUND, list(OWN_CONSUMERS), settled, seal_after)
    if not row["registered"] or row["order_no"] <= 0:
        return None
    return Bound(row["order_no"], row["through"])


async def drop_stalled_consumers(
    pool: asyncpg.Pool, *, own: Collection[str] = OWN_CONSUMERS, patience: timedelta = CONSUMER_PATIENCE
) -> list[str]:
    """Forget consumers that leave commits untaken for longer than anybody waits; returns which."""
    names = [row["name"] for row in await pool.fetch(_DROP_CONSUMERS, list(own), patience)]
    if names:
        _log.warning("feed consumers dropped: they have taken nothing for too long", consumers=names)
    return names


async def raise_floors(pool: asyncpg.Pool, bound: Bound) -> None:
    """Raise every instance's floor to its last commit within the bound, before anything is sealed."""
    for row in await pool.fetch(_INSTANCES):
        await pool.execute(_RAISE, row["instance"], bound.order_no)


async def forget_commits(pool: asyncpg.Pool) -> int:
    """Delete the commits below the floors that every consumer has taken; returns how many."""
    forgotten: int = await pool.fetchval(_FORGET, timeout=_STATEMENT_S)
    return forgotten
