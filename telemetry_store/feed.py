"""The feed: every commit, in order, exactly once, whatever fails in between.

An ingest process numbers its commits without gaps, so a reader remembers one number
per instance, the frontier, and asks for what lies behind it. All reading happens in
one REPEATABLE READ snapshot: when it shows an instance's number, it shows all of that
instance's commits up to it.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, timedelta

import asyncpg

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY, Kind

# Last commit_no taken, by instance; an instance not named: none.
Frontier = Mapping[int, int]
# A commit holds up to a few hundred thousand samples.
COMMITS_PER_READ = 256
_EPOCH = date(1970, 1, 1)

_LAGGING = """
SELECT i.instance, coalesce(taken.commit_no, 0) AS taken, i.floor_commit_no
FROM telemetry.ingest_instance AS i
LEFT JOIN unnest($1::integer[], $2::bigint[]) AS taken (instance, commit_no) USING (instance)
WHERE i.last_commit_no > coalesce(taken.commit_no, 0)
"""

# By instance along the primary key first, so that a long way behind costs no more.
_COMMITS = """
SELECT c.instance, c.commit_no, c.order_no, c.days, c.traceparent, c.doubles, c.ints, c.bools
FROM unnest($1::integer[], $2::bigint[]) AS taken (instance, commit_no)
CROSS JOIN LATERAL (
    SELECT instance, commit_no, order_no, days, traceparent, doubles, ints, bools
    FROM telemetry.ingest_commit
    WHERE instance = taken.instance AND commit_no > taken.commit_no
    ORDER BY commit_no
    LIMIT $3
) AS c
ORDER BY c.order_no
LIMIT $3
"""

# Of before every instance that may commit still, or whose registration may not be seen yet.
_SETTLED = """
SELECT coalesce(max(instance), 0)
FROM telemetry.ingest_instance
WHERE instance < coalesce(
    (
        SELECT min(instance)
        FROM telemetry.ingest_instance
        WHERE closed_at IS NULL OR closed_at > now() - interval '1 minute'
    ),
    2147483647
)
"""

# Which segments are of a run of days and the orders that touch it, as `day_ranges` has them.
OF_COMMITS = """start_time >= $1 AND start_time < $2
  AND order_no BETWEEN $3 AND $4 AND order_no = ANY ($5::bigint[])"""
# By BRIN and in no order: of rows written just now the planner knows nothing, and would walk through all of a
# day, by series or, when pages in no order are not dear enough, by its bounds. Without other workers: ingest
# needs the cores.
_BY_COMMIT = """
SET LOCAL enable_seqscan = off;
SET LOCAL enable_indexscan = off;
SET LOCAL enable_sort = off;
SET LOCAL random_page_cost = 100;
SET LOCAL max_parallel_workers_per_gather = 0
"""
_AS_USUAL = """
SET LOCAL enable_seqscan TO DEFAULT;
SET LOCAL enable_indexscan TO DEFAULT;
SET LOCAL enable_sort TO DEFAULT;
SET LOCAL random_page_cost TO DEFAULT;
SET LOCAL max_parallel_workers_per_gather TO DEFAULT
"""
_CONSUMER = "SELECT frontier FROM telemetry.feed_consumer WHERE name = $1"


class FeedExpiredError(Exception):
    """Commits behind the frontier are not kept any more: rebuild from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One group commit.

    Attributes:
        instance: of the ingest process.
        commit_no: contiguous per instance; with it the feed offset.
        order_no: decides which of two samples of equal time is later.
        days: UTC days that its samples lie in.
        traceparent: W3C trace context of the commit's span, "" when it was not recorded.
        numbers: how many of its samples in segments are of each kind with numbers; None: not recorded.
    """

    instance: int
    commit_no: int
    order_no: int
    days: Sequence[date]
    traceparent: str
    numbers: Mapping[Kind, int] | None = None


@dataclass(frozen=True, slots=True)
class CommitRead:
    """What one read found.

    Attributes:
        commits: by order_no, per instance without a gap.
        frontier: after them.
        behind: whether there are more.
    """

    commits: Sequence[Commit]
    frontier: Frontier
    behind: bool


@asynccontextmanager
async def snapshot(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    """Run one REPEATABLE READ transaction, in which all of one read belongs."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        yield connection


async def read_commits(
    connection: Connection, frontier: Frontier, *, limit: int = COMMITS_PER_READ
) -> CommitRead:
    """Read the commits that follow a frontier.

    Args:
        connection: in a snapshot.
        frontier: what was taken before.
        limit: most commits to return.

    Raises:
        FeedExpiredError: the frontier is below an instance's floor, or commits are gone.
    """
    lagging = await connection.fetch(_LAGGING, list(frontier), list(frontier.values()))
    if not lagging:
        return CommitRead((), frontier, behind=False)
    for row in lagging:
        if row["taken"] < row["floor_commit_no"]:
            raise FeedExpiredError(
                f"instance {row['instance']}: commits after {row['taken']} may be sealed,"
                f" the floor is {row['floor_commit_no']}"
            )
    rows = await connection.fetch(
        _COMMITS, [row["instance"] for row in lagging], [row["taken"] for row in lagging], limit
    )
    after = dict(frontier)
    commits = []
    for row in rows:
        expected = after.get(row["instance"], 0) + 1
        if row["commit_no"] != expected:
            raise FeedExpiredError(f"instance {row['instance']}: commit {expected} is gone")
        after[row["instance"]] = row["commit_no"]
        numbers = {Kind.DOUBLE: row["doubles"], Kind.INT: row["ints"], Kind.BOOL: row["bools"]}
        commits.append(
            Commit(
                row["instance"],
                row["commit_no"],
                row["order_no"],
                row["days"],
                row["traceparent"] or "",
                None if None in numbers.values() else numbers,
            )
        )
    if not commits:
        raise FeedExpiredError(f"instance {lagging[0]['instance']}: its commits are gone")
    return CommitRead(commits, after, behind=len(commits) == limit)


async def read_settled(connection: Connection) -> int:
    """Return the instance up to which none will commit any more, 0 when there is none.

    Args:
        connection: in a snapshot.
    """
    settled: int = await connection.fetchval(_SETTLED)
    return settled


def day_ranges(commits: Sequence[Commit]) -> list[tuple[tuple[int, int], list[int]]]:
    """Return the runs of successive days that commits touch, each with the orders that touch it.

    A run is [start, end) in microseconds since the epoch. Reading run by run opens only
    the partitions that hold something, also when a backfill wrote years apart.
    """
    orders: defaultdict[int, list[int]] = defaultdict(list)
    for commit in commits:
        for day in commit.days:
            orders[(day - _EPOCH) // timedelta(days=1)].append(commit.order_no)
    ranges: list[tuple[tuple[int, int], set[int]]] = []
    for day_no in sorted(orders):
        start, end = day_no * MICROS_PER_DAY, (day_no + 1) * MICROS_PER_DAY
        if ranges and ranges[-1][0][1] == start:
            (first, _), touching = ranges.pop()
            ranges.append(((first, end), touching | set(orders[day_no])))
        else:
            ranges.append(((start, end), set(orders[day_no])))
    return [(span, sorted(touching)) for span, touching in ranges]


@asynccontextmanager
async def by_commit(connection: Connection) -> AsyncIterator[None]:
    """Have segments found by `OF_COMMITS` along the order of commits while the context is open.

    Args:
        connection: in a transaction.
    """
    await connection.execute(_BY_COMMIT)
    yield
    await connection.execute(_AS_USUAL)


async def read_consumer(connection: Connection, name: str) -> dict[int, int]:
    """Return how far a registered consumer is; a consumer not registered: nowhere."""
    frontier = await connection.fetchval(_CONSUMER, name)
    return {} if frontier is None else decode_frontier(frontier)


def decode_frontier(text: str) -> dict[int, int]:
    """Return a frontier from its JSON text."""
    return {int(instance): int(commit_no) for instance, commit_no in json.loads(text).items()}


def encode_frontier(frontier: Frontier) -> str:
    """Return a frontier as JSON text, {"17": 4711}."""
    return json.dumps({str(instance): commit_no for instance, commit_no in frontier.items()})
